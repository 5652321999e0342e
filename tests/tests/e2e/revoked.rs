//! Revocation: what is revoked is refused by either end, and what is open with it is closed.

use std::path::{Path, PathBuf};

use culvert::lab::{Pod, wait_until};
use culvert_tests::mesh::{Mesh, SOON, access, log_of};
use culvert_tests::net::{Acceptor, End, Server, connect, exchange, read_to_end, try_out};
use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber};
use serde_json::Value;
use time::{Duration, OffsetDateTime};

use crate::admin::get;

const PORT: u16 = 8080;

/// Serial number of the pod's certificate.
fn serial(mesh: &Mesh, node: &str, pod: &Pod) -> Vec<u8> {
    let host = mesh.lab.host(mesh.node(node)).unwrap().clone();
    let (_, dump) = get(&host, "/config_dump");
    let dump: Value = serde_json::from_str(&dump).unwrap();
    let all = dump["certificates"].as_array().unwrap();
    let found = all.iter().find(|cert| cert["identity"] == pod.identity().as_str()).unwrap();
    let number: u128 = found["certChain"][0]["serialNumber"].as_str().unwrap().parse().unwrap();
    number.to_be_bytes().to_vec()
}

/// Puts a list of the embedded root in its place, whole.
fn revoke(mesh: &Mesh, path: &Path, serials: &[Vec<u8>]) {
    let read = |name: &str| std::fs::read_to_string(mesh.lab.ca_dir().join(name)).unwrap();
    let key = KeyPair::from_pem(&read("root-key.pem")).unwrap();
    let root = Issuer::from_ca_cert_pem(&read("root-cert.pem"), key).unwrap();
    let now = OffsetDateTime::now_utc();
    let revoked = |serial: &Vec<u8>| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: now,
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: now,
        next_update: now + Duration::days(1),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    place(path, &params.signed_by(&root).unwrap().pem().unwrap());
}

fn place(path: &Path, text: &str) {
    let draft = path.with_extension("draft");
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(draft, path).unwrap();
}

fn rejections(mesh: &Mesh, node: &str, reporter: &str) -> f64 {
    let label = format!("reporter=\"{reporter}\"");
    mesh.agent(node).metric("istio_crl_policy_rejections_total", &[&label]).unwrap()
}

/// First no list at all, then one of nobody, then the server's and then the client's certificate on it.
#[test]
fn revoked_certificates_are_refused_and_their_tunnels_closed() {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
    let _echo = Server::echo(&server, PORT);
    let acceptor = Acceptor::new(&server, (server.v4.into(), PORT + 1));
    let lists: PathBuf = mesh.lab.dir().join("crl.pem");
    mesh.start(&["--crl-path", lists.to_str().unwrap()]);
    let all_well = || {
        let to = |ip| exchange(&client, (ip, PORT), b"well").is_ok_and(|(_, answer)| answer == b"well");
        server.addresses().into_iter().all(to).then_some(())
    };
    let (_, bytes, end) = try_out(&client, (server.v4.into(), PORT));
    assert!(bytes.is_empty() && end == End::Reset, "no list was ever readable: {bytes:?}, {end:?}");
    revoke(&mesh, &lists, &[]);
    wait_until("service with a list of nobody", SOON, all_well, || log_of(mesh.agent("a"))).unwrap();

    let told = |node: &str| access(mesh.agent(node), &[("denial.class", "revoked")]).len();
    for (revoked, node, reporter) in
        [(serial(&mesh, "b", &server), "a", "source"), (serial(&mesh, "a", &client), "b", "destination")]
    {
        let (mut at_client, mut at_server) = acceptor.pair(&client);
        let (before, lines) = (rejections(&mesh, node, reporter), told(node));
        revoke(&mesh, &lists, &[revoked]);
        for stream in [&mut at_client, &mut at_server] {
            assert_eq!(read_to_end(stream), (Vec::new(), End::Reset), "{reporter}");
        }
        assert!(rejections(&mesh, node, reporter) > before, "{reporter}");
        let line = || (told(node) > lines).then_some(());
        wait_until("a line of who closed it", SOON, line, || log_of(mesh.agent(node))).unwrap();
        for ip in server.addresses() {
            let (_, bytes, end) = try_out(&client, (ip, PORT));
            assert!(bytes.is_empty() && end == End::Reset, "{reporter}: {bytes:?}, {end:?}");
        }
        let flags = format!("reporter=\"{reporter}\"");
        let results = ["result=\"revoked\""];
        assert!(
            mesh.agent(node).metric("culvert_hbone_handshakes_total", &results).unwrap() >= 1.0,
            "{flags}"
        );
        // A file that is no list changes nothing but the alarm.
        place(&lists, "garbage");
        let alarm =
            || (mesh.agent(node).metric("culvert_crl_load_failed", &[]).unwrap() == 1.0).then_some(());
        wait_until("the alarm", SOON, alarm, || log_of(mesh.agent(node))).unwrap();
        assert!(
            connect(&client, (server.v4.into(), PORT)).is_ok_and(|mut s| read_to_end(&mut s).1 == End::Reset)
        );
        revoke(&mesh, &lists, &[]);
        wait_until("service again", SOON, all_well, || log_of(mesh.agent("a"))).unwrap();
    }
    drop(acceptor);
    mesh.finish();
}
