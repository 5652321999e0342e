//! Real programs that know nothing of a mesh, among them those whose server speaks first.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use culvert::lab::{Finished, PlaceCommand, Pod};
use culvert_tests::mesh::{Mesh, SOON};

const LIMIT: Duration = Duration::from_secs(60);

/// A mail server as small as the protocol allows; socat runs it for each connection.
const MAIL: &str = r#"
printf '220 lab ESMTP\r\n'
while read -r line; do
  case "$line" in
    EHLO*|HELO*|MAIL*|RCPT*) printf '250 ok\r\n' ;;
    DATA*) printf '354 go on\r\n'
      while read -r text; do case "$text" in .|.?) break ;; esac; done
      printf '250 queued\r\n' ;;
    QUIT*) printf '221 bye\r\n'; exit ;;
    *) printf '500 what\r\n' ;;
  esac
done
"#;

fn run(command: PlaceCommand) -> Finished {
    let done = command.finish(LIMIT).unwrap_or_else(|e| panic!("{e}"));
    assert!(done.status.success(), "{}\n{}{}", done.status, done.stdout, done.stderr);
    done
}

struct World {
    mesh: Mesh,
    client: Pod,
    server: Pod,
}

fn world() -> World {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
    mesh.start(&[]);
    World { mesh, client, server }
}

impl World {
    /// All connections went through the tunnel, both ways round the same number.
    fn finish(self, at_least: f64) {
        let mutual = "connection_security_policy=\"mutual_tls\"";
        let count = |node: &str, labels: &[&str]| {
            self.mesh.agent(node).metric("istio_tcp_connections_opened_total", labels).unwrap()
        };
        assert_eq!(count("a", &[mutual]), count("b", &[mutual]));
        assert_eq!(count("b", &[mutual]), count("b", &[]), "all in tunnels");
        assert!(count("b", &[]) >= at_least, "{} connections", count("b", &[]));
        self.mesh.finish();
    }
}

fn both_families(pod: &Pod) -> [IpAddr; 2] {
    pod.addresses()
}

#[test]
fn mail_is_delivered() {
    let world = world();
    let dir = world.server.dir().unwrap();
    let (script, letter) = (dir.join("mail.sh"), dir.join("letter"));
    std::fs::write(&script, MAIL).unwrap();
    std::fs::write(&letter, "Subject: hello\r\n\r\nthrough the tunnel\r\n".repeat(1000)).unwrap();
    let serve = format!("EXEC:sh {}", script.display());
    let listen = "TCP6-LISTEN:2525,ipv6only=0,fork,reuseaddr";
    let _server = world.server.command("socat").args([listen, &serve]).spawn().unwrap();
    world.server.wait_for(2525, SOON).unwrap();
    for ip in both_families(&world.server) {
        let url = format!("smtp://{}", SocketAddr::new(ip, 2525));
        let send = world.client.command("curl").args(["-sS", "--mail-from", "a@lab", "--mail-rcpt", "b@lab"]);
        run(send.args(["--url", &url, "-T"]).arg(&letter));
    }
    world.finish(2.0);
}

#[test]
fn redis_keeps_what_it_is_told() {
    let world = world();
    let dir = world.server.dir().unwrap();
    let bind = ["--bind", "0.0.0.0", "::", "--protected-mode", "no", "--save", "", "--port", "6379"];
    let _server = world.server.command("redis-server").args(bind).current_dir(&dir).spawn().unwrap();
    world.server.wait_for(6379, SOON).unwrap();
    for ip in both_families(&world.server) {
        let ip = ip.to_string();
        let ask =
            |words: &[&str]| run(world.client.command("redis-cli").args(["-h", &ip]).args(words)).stdout;
        assert_eq!(ask(&["set", &ip, &"x".repeat(100_000)]), "OK\n");
        assert_eq!(ask(&["strlen", &ip]), "100000\n");
    }
    let v4 = world.server.v4.to_string();
    // Connections kept, many requests on each, some of them sent ahead.
    let load = ["-h", &v4, "-n", "2000", "-c", "20", "-P", "5", "-q", "-t", "set,get"];
    run(world.client.command("redis-benchmark").args(load));
    world.finish(44.0);
}

/// Where Debian keeps a version's servers.
fn postgres_dir() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let dirs = versions.map(|entry| entry.path().join("bin")).find(|dir| dir.join("initdb").is_file());
    dirs.expect("PostgreSQL's server is not installed: apt-get install postgresql, or run hack/setup.sh")
}

#[test]
fn a_database_answers_queries() {
    let world = world();
    let programs = postgres_dir();
    // It refuses to run as root.
    let dir = world.server.dir().unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    let data = dir.join("data").display().to_string();
    let as_nobody = |program: &str| {
        let user = ["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"];
        world.server.command("setpriv").args(user).arg(programs.join(program)).current_dir(&dir)
    };
    run(as_nobody("initdb").args([
        "-D",
        &data,
        "-U",
        "lab",
        "-A",
        "trust",
        "--no-sync",
        "--no-instructions",
    ]));
    let hosts = "host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n";
    std::fs::write(dir.join("data/pg_hba.conf"), hosts).unwrap();
    let options = ["-D", &data, "-h", "*", "-k", "", "-F"];
    let _server = as_nobody("postgres").args(options).spawn().unwrap();
    world.server.wait_for(5432, SOON).unwrap();
    for ip in both_families(&world.server) {
        // Large enough for many records, so that rows, COPY and the end of both cross.
        let query = "create temp table t as select generate_series(1, 50000) n; copy t to stdout; select sum(n) from t";
        let connect = [
            "-h",
            &ip.to_string(),
            "-U",
            "lab",
            "-d",
            "postgres",
            "-At",
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            query,
        ];
        let said = run(world.client.command("psql").args(connect).env("PGCONNECT_TIMEOUT", "20")).stdout;
        assert!(said.ends_with("50000\n1250025000\n"), "{}", said.len());
    }
    world.finish(2.0);
}
