use super::*;
use crate::settings::{Cli, Environment, Settings};

fn settings(args: &[&str], environment: &[(&str, &str)]) -> Settings {
    let variables = environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let environment = Environment { variables, mesh_file: None };
    Cli::read(["ztunnel"].iter().chain(args), &environment).unwrap().settings
}

/// `xds | ca`, as one looks at them.
fn sources(args: &[&str]) -> String {
    let settings = settings(args, &[]);
    let discovery = match settings.discovery() {
        Discovery::Xds(server) => server.address.to_string(),
        Discovery::LocalFile(path) => format!("file {}", path.display()),
        Discovery::LocalText(text) => format!("text {text}"),
        Discovery::Directory(path) => format!("directory {}", path.display()),
    };
    let authority = match settings.authority() {
        Authority::Istio(server) => server.address.to_string(),
        Authority::Embedded => "embedded".to_owned(),
    };
    let problems = if settings.problems().is_empty() { "" } else { " !" };
    format!("{discovery} | {authority}{problems}")
}

#[test]
fn what_is_told_decides_where_state_and_certificates_come_from() {
    let pod = "--kubernetes-service-host=10.96.0.1";
    let istiod = "https://istiod.istio-system.svc:15012/";
    for (args, want) in [
        (&[][..], "directory /etc/culvert/mesh | embedded".to_owned()),
        (&["--config", "m"], "directory m | embedded".to_owned()),
        (&[pod], format!("{istiod} | {istiod}")),
        (
            &[pod, "--xds-address", "https://istiod-canary.istio-system.svc:15012"],
            format!("https://istiod-canary.istio-system.svc:15012/ | {istiod}"),
        ),
        (&[pod, "--xds-address", ""], format!("directory /etc/culvert/mesh | {istiod}")),
        (
            &[pod, "--xds-address", "", "--ca-address", ""],
            "directory /etc/culvert/mesh | embedded !".to_owned(),
        ),
        (
            &["--xds-address", "10.0.0.1:15012"],
            "https://10.0.0.1:15012/ | https://10.0.0.1:15012/".to_owned(),
        ),
        (
            &["--xds-address", "http://[::1]:15010", "--ca-address", ""],
            "http://[::1]:15010/ | embedded".to_owned(),
        ),
        (&["--ca-address", "https://ca:1"], "directory /etc/culvert/mesh | https://ca:1/".to_owned()),
        (&["--local-xds-path", "m.yaml"], "file m.yaml | embedded".to_owned()),
        (&[pod, "--local-xds-path", "m.yaml"], format!("file m.yaml | {istiod}")),
        (&["--local-xds", "workloads: []"], "text workloads: [] | embedded".to_owned()),
        (&["--local-xds", "x", "--xds-address", ""], "text x | embedded".to_owned()),
        (&["--local-xds", "x", "--local-xds-path", "y"], "file y | embedded !".to_owned()),
        (&["--local-xds", "x", "--xds-address", "h:1"], "https://h:1/ | https://h:1/ !".to_owned()),
    ] {
        assert_eq!(sources(args), want, "{args:?}");
    }
}

#[test]
fn an_address_names_a_server_and_nothing_else() {
    for good in ["istiod:15012", "https://istiod", "http://10.0.0.1:1", "https://[fd00::1]:15012/"] {
        assert!(matches!(address(good), Ok(Address(Some(_)))), "{good}");
    }
    assert_eq!(address(""), Ok(Address(None)));
    for bad in ["https://", "ftp://x:1", "https://x/path", "a b", "unix:///x", "://", "https://:1"] {
        assert!(address(bad).is_err_and(|told| told.contains("istiod.istio-system.svc:15012")), "{bad}");
    }
}

#[test]
fn secrets_are_not_printed() {
    let settings = settings(&["--auth-token", "eyJhbGciOi.x.y"], &[("XDS_HEADER_x-key", "hush")]);
    assert_eq!(settings.control_plane.told.xds_headers.len(), 1);
    let shown = format!("{settings:?} {}", serde_json::to_string(&settings).unwrap());
    assert!(!shown.contains("eyJ") && !shown.contains("hush"), "{shown}");
    assert_eq!(token("/a"), Ok(Token::File("/a".into())));
    assert_eq!(token("./a"), Ok(Token::File("./a".into())));
    assert_eq!(token("eyJ.a.b\n"), Ok(Token::Literal("eyJ.a.b".into())));
    assert!(token("").is_err());
}

#[test]
fn the_node_says_who_it_is() {
    let pod = [
        "--pod-name",
        "zt-1",
        "--pod-namespace",
        "istio-system",
        "--instance-ip",
        "10.0.0.9",
        "--node",
        "n1",
    ];
    let told = [("ISTIO_META_CLUSTER_ID", "c1"), ("ISTIO_METAJSON_LABELS", r#"{"a":1}"#)];
    let settings = settings(&pod, &told);
    let own = &settings.control_plane;
    assert_eq!(own.node_id(), "ztunnel~10.0.0.9~zt-1.istio-system~istio-system.svc.cluster.local");
    let want = serde_json::json!({"NAME": "zt-1", "NAMESPACE": "istio-system", "INSTANCE_IPS": "10.0.0.9",
        "NODE_NAME": "n1", "CLUSTER_ID": "c1", "LABELS": {"a": 1}});
    assert_eq!(Value::Object(own.node_metadata(settings.source.node.as_deref())), want);
    assert_eq!(settings.source.cluster_id(), "c1");
    assert_eq!(own.own_pod(), None);
}

#[test]
fn dns_is_captured_unless_told_otherwise() {
    for (told, want) in [
        (&[][..], true),
        (&["--dns-capture", "true"], true),
        (&["--dns-capture", "false"], false),
        (&["--dns-capture", ""], false),
    ] {
        assert_eq!(settings(told, &[]).control_plane.dns_capture(), want, "{told:?}");
    }
    assert_eq!(dns_address("localhost:53"), Ok(DnsAddress::Localhost(53)));
    assert_eq!(dns_address("[::1]:53"), Ok(DnsAddress::At("[::1]:53".parse().unwrap())));
    assert!(dns_address("localhost").is_err() && dns_address("53").is_err());
}

#[test]
fn a_server_is_told_the_cluster() {
    let settings = settings(&["--xds-address", "h:1", "--cluster-id", "c1"], &[("XDS_HEADER_x-key", "v")]);
    let Discovery::Xds(server) = settings.discovery() else { panic!("no server") };
    let headers = server.target(settings.source.cluster_id()).headers;
    let names: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    assert_eq!(names, [("clusterid", b"c1".as_slice()), ("x-key", b"v")]);
    assert!(
        !Cli::read(["ztunnel", "--cluster-id", "a\nb"], &Environment::default())
            .unwrap()
            .settings
            .problems()
            .is_empty()
    );
}
