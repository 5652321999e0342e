//! Latency and throughput through the mesh against the same programs outside it, measured one after the other.

use std::net::IpAddr;
use std::time::Duration;

use culvert::lab::{Pod, find_program};

use super::stage::{CART_PORT, IPERF_PORT, Stage, url};
use super::story::Story;

const RUN_MAX: Duration = Duration::from_secs(15);

/// What wrk measured.
struct Load {
    /// Median latency in microseconds.
    p50: f64,
    /// Requests a second.
    rate: f64,
    /// Requests that failed.
    failed: u64,
}

/// Measures and prints; checks that everything was answered, not how fast.
pub(super) fn measure(stage: &mut Stage, story: &mut Story) -> anyhow::Result<()> {
    story.say("web -> cart-2 through both agents, stranger -> plain direct, on the same nodes. A demo, not a benchmark:")?;
    story.say("both ends, both agents and the load generator share this machine's processors.")?;
    let [pair, direct] = [(&stage.web, &stage.cart2), (&stage.stranger, &stage.plain)];
    if find_program("wrk").is_none() {
        story.check(true, "latency left out: wrk is not installed (apt-get install wrk)")?;
    } else {
        for (index, family) in ["IPv4", "IPv6"].into_iter().enumerate() {
            let [mesh, plain] = [wrk(pair, index, (1, 1))?, wrk(direct, index, (1, 1))?];
            row(story, &format!("latency, 1 connection, {family}"), (mesh.p50, plain.p50), "µs (median)")?;
            story.figure(&format!("latency_mesh_{family}_us"), mesh.p50);
            story.figure(&format!("latency_direct_{family}_us"), plain.p50);
            answered(story, &mesh, &format!("one connection over {family}"))?;
        }
        let [mesh, plain] = [wrk(pair, 0, (64, 2))?, wrk(direct, 0, (64, 2))?];
        row(story, "requests, 64 connections, IPv4", (mesh.rate, plain.rate), "per second")?;
        story.figure("requests_mesh_per_s", mesh.rate);
        story.figure("requests_direct_per_s", plain.rate);
        answered(story, &mesh, "64 connections")?;
    }
    if find_program("iperf3").is_none() {
        story.check(true, "throughput left out: iperf3 is not installed (apt-get install iperf3)")?;
    } else {
        let [mesh, plain] = [iperf(pair)?, iperf(direct)?];
        row(story, "one bulk stream, IPv6", (mesh, plain), "Gbit/s")?;
        story.figure("bulk_mesh_gbit_s", mesh);
        story.figure("bulk_direct_gbit_s", plain);
        story.check(mesh > 0.0, "the bulk stream came through")?;
    }
    Ok(())
}

fn row(story: &Story, what: &str, (mesh, direct): (f64, f64), unit: &str) -> anyhow::Result<()> {
    let digits = if direct < 20.0 { 2 } else { 0 };
    let ratio = if direct > 0.0 { mesh / direct } else { 0.0 };
    Ok(story.say(&format!(
        "  {what:<32} mesh {mesh:>9.digits$}   direct {direct:>9.digits$}   {unit} ({ratio:.2} x)"
    ))?)
}

fn answered(story: &mut Story, load: &Load, what: &str) -> anyhow::Result<()> {
    let holds = load.failed == 0 && load.rate > 0.0;
    Ok(story.check(holds, &format!("every request of {what} was answered ({} failed)", load.failed))?)
}

/// wrk from the first pod to nginx in the second; `index` chooses the family, then connections and seconds.
fn wrk((from, to): (&Pod, &Pod), index: usize, (connections, seconds): (u32, u32)) -> anyhow::Result<Load> {
    let address: IpAddr = if index == 0 { to.v4.into() } else { to.v6.into() };
    let (c, d) = (format!("-c{connections}"), format!("-d{seconds}s"));
    let command = from.command("wrk").args(["-t1", &c, &d, "--latency", &url(address, CART_PORT, "/bench")]);
    let done = command.finish(RUN_MAX)?;
    parse_wrk(&done.stdout)
        .ok_or_else(|| anyhow::anyhow!("wrk printed no figures: {}{}", done.stdout, done.stderr))
}

fn parse_wrk(text: &str) -> Option<Load> {
    let after = |name: &str| text.lines().find_map(|l| l.trim().strip_prefix(name)).map(str::trim);
    let errors = after("Socket errors:").unwrap_or_default();
    let numbers = errors.split([' ', ',']).filter_map(|w| w.parse::<u64>().ok());
    let refused = after("Non-2xx or 3xx responses:").and_then(|n| n.parse::<u64>().ok()).unwrap_or_default();
    Some(Load {
        p50: micros(after("50%")?)?,
        rate: after("Requests/sec:")?.parse().ok()?,
        failed: numbers.sum::<u64>() + refused,
    })
}

/// `123.45us`, `1.20ms`, `2.00s`.
fn micros(text: &str) -> Option<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
    let (number, factor) =
        units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    Some(number.parse::<f64>().ok()? * factor)
}

/// One TCP stream over IPv6, in Gbit/s as the receiver saw it.
fn iperf((from, to): (&Pod, &Pod)) -> anyhow::Result<f64> {
    let port = IPERF_PORT.to_string();
    let server = to.command("iperf3").args(["-s", "-1", "-p", &port]).spawn()?;
    to.wait_for(IPERF_PORT, RUN_MAX)?;
    let address = to.v6.to_string();
    let done = from.command("iperf3").args(["-J", "-c", &address, "-p", &port, "-t", "2"]).finish(RUN_MAX)?;
    drop(server);
    let result: serde_json::Value = serde_json::from_str(&done.stdout)?;
    let bits = result.pointer("/end/sum_received/bits_per_second").and_then(serde_json::Value::as_f64);
    let said = result.get("error").and_then(|e| e.as_str()).unwrap_or("no figure");
    bits.map(|b| b / 1e9).ok_or_else(|| anyhow::anyhow!("iperf3: {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_wrk() {
        let text = "  Latency Distribution\n     50%  123.00us\n     75%    1.00ms\n  1000 requests in 2.00s, 1.0MB read\n\
                    \x20 Socket errors: connect 1, read 2, write 0, timeout 4\n  Non-2xx or 3xx responses: 3\nRequests/sec:  500.25\n";
        let load = parse_wrk(text).unwrap();
        assert_eq!((load.p50, load.rate, load.failed), (123.0, 500.25, 10));
        assert!(parse_wrk("unable to connect").is_none());
    }

    #[test]
    fn units_of_time() {
        assert_eq!(micros("1.50ms"), Some(1500.0));
        assert_eq!(micros("2.00s"), Some(2e6));
        assert_eq!(micros("2"), None);
    }
}
