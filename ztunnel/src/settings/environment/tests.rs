use super::*;
use crate::settings::{Cli, ReadError, Settings};

const MESH: &str = "
trustDomain: shop.example
trustDomainAliases: [old.example, \"older.example\"]
defaultConfig:
  discoveryAddress: istiod.mesh:15012
  proxyAdminPort: 15999
  statsPort: 15998
  concurrency: 3
  proxyMetadata:
    ISTIO_META_CLUSTER_ID: of-the-file
    DNS_CAPTURE: \"false\"
";

fn read(mesh: &str, args: &[&str]) -> Result<Settings, ReadError> {
    let environment = Environment { variables: BTreeMap::new(), mesh_file: Some(mesh.to_owned()) };
    Cli::read(["ztunnel"].iter().chain(args), &environment).map(|cli| cli.settings)
}

/// What the mesh file can set, in one line.
fn outcome(mesh: &str, args: &[&str]) -> String {
    let s = read(mesh, args).unwrap();
    let discovery = match s.discovery() {
        crate::settings::Discovery::Xds(server) => server.address.to_string(),
        other => format!("{other:?}"),
    };
    let own = &s.control_plane;
    let (stats, admin) =
        (s.process.stats_addr.port(), s.process.admin_addr.first().map_or(0, |addr| addr.port()));
    let (domain, aliases) = (&s.identity.trust_domain, own.trust_domain_aliases.join("+"));
    let (cluster, dns) = (s.source.cluster_id(), own.dns_capture());
    format!(
        "{discovery} stats={stats} admin={admin} threads={} {domain} {aliases} {cluster} dns={dns}",
        s.workers()
    )
}

#[test]
fn flags_win_over_proxy_config_over_the_mesh_file_over_defaults() {
    assert_eq!(
        outcome(MESH, &[]),
        "https://istiod.mesh:15012/ stats=15998 admin=15999 threads=3 shop.example old.example+older.example \
         of-the-file dns=false"
    );
    let config = "{statsPort: 1, concurrency: 5, proxyMetadata: {ISTIO_META_CLUSTER_ID: of-the-config}}";
    assert_eq!(
        outcome(MESH, &["--proxy-config", config]),
        "https://istiod.mesh:15012/ stats=1 admin=15999 threads=5 shop.example old.example+older.example \
         of-the-config dns=false"
    );
    let flags = [
        "--proxy-config",
        config,
        "--xds-address",
        "x:1",
        "--stats-addr",
        "0.0.0.0:2",
        "--admin-addr",
        "127.0.0.1:3",
        "--worker-threads",
        "4",
        "--trust-domain",
        "d",
        "--trust-domain-aliases",
        "e",
        "--cluster-id",
        "c",
        "--dns-capture",
        "true",
    ];
    assert_eq!(outcome(MESH, &flags), "https://x:1/ stats=2 admin=3 threads=4 d e c dns=true");
    assert_eq!(
        outcome("", &["--xds-address", "x:1", "--worker-threads", "1"]),
        "https://x:1/ stats=15020 admin=15000 threads=1 cluster.local  Kubernetes dns=true"
    );
}

#[test]
fn what_is_wrong_is_named() {
    for (mesh, args, want) in [
        (
            "defaultConfig: {statsPort: http}",
            &[][..],
            "statsPort of ./etc/istio/config/mesh is \"http\": write a number up to 65535",
        ),
        (
            "defaultConfig: {discoveryAddress: 'a b'}",
            &[],
            "discoveryAddress of ./etc/istio/config/mesh: a b is no address",
        ),
        ("a: [", &[], "./etc/istio/config/mesh"),
        ("", &["--proxy-config", "concurrency: -1"], "concurrency of PROXY_CONFIG is \"-1\""),
    ] {
        let Err(ReadError::Told(problems)) = read(mesh, args) else { panic!("{mesh} {args:?} is accepted") };
        assert!(problems.concat().contains(want), "{problems:?}");
    }
    let variables = [("ISTIO_METAJSON_X", "{"), ("XDS_HEADER_a b", "c"), ("CA_HEADER_x", "line\nbreak")];
    let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let told = Told::read(&Environment { variables, mesh_file: None }, None).unwrap_err();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(!told.concat().contains("break"), "a value may be a secret: {told:?}");
}

#[test]
fn other_fields_of_the_mesh_file_are_left_alone() {
    let mesh =
        "accessLogFile: /dev/stdout\nenableTracing: true\ndefaultConfig: {tracing: {zipkin: {address: z:1}}}";
    assert!(outcome(mesh, &["--worker-threads", "1"]).starts_with("Directory"));
}

/// What the DaemonSet sets is a setting, and the files are YAML.
#[test]
fn the_manifests_set_what_there_is() {
    use clap::CommandFactory;
    let command = Cli::command();
    let known: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str()).collect();
    let values = include_str!("../../../../manifests/kubernetes/ztunnel/ztunnel.env");
    let daemonset = include_str!("../../../../manifests/kubernetes/ztunnel/daemonset.yaml");
    for text in [
        daemonset,
        include_str!("../../../../manifests/kubernetes/ztunnel/service-account.yaml"),
        include_str!("../../../../manifests/kubernetes/ztunnel/kustomization.yaml"),
    ] {
        tree::read("manifest", text).unwrap();
    }
    let of_file = values.lines().filter(|line| !line.starts_with('#'));
    let of_file = of_file.map(|line| line.split_once('=').unwrap().0);
    let of_pod = daemonset.lines().filter_map(|line| line.trim().strip_prefix("- name: "));
    let of_pod = of_pod.filter(|name| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'));
    let (of_file, of_pod): (Vec<_>, Vec<_>) = (of_file.collect(), of_pod.collect());
    assert!(of_file.len() > 5 && of_pod.len() > 5, "{of_file:?} {of_pod:?}");
    for name in of_file.into_iter().chain(of_pod) {
        assert!(known.contains(&name), "{name} is no setting");
    }
}
