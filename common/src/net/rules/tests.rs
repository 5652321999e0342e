use super::*;

/// All rules, a line each, under their chain.
fn text(spec: &CaptureSpec) -> String {
    let mut text = String::new();
    for table in ruleset(spec).unwrap() {
        for chain in table.chains {
            text += &format!("{} {} {:?} {}\n", table.name, chain.name, chain.kind, chain.priority);
            chain.rules.iter().for_each(|rule| text += &format!("  {rule}\n"));
        }
    }
    text
}

#[test]
fn the_default_rules() {
    let want = "\
culvert-mangle prerouting Filter -151
  mark & 0xfff == 0x539 ct mark set ct mark & 0xfffff000 | 0x111
culvert-mangle output Route -151
  ct mark & 0xfff == 0x111 mark set ct mark
culvert-mangle zone-prerouting Filter -301
  udp sport 53 mark & 0xfff != 0x539 ct zone set 1
culvert-mangle zone-output Filter -301
  udp dport 53 mark & 0xfff == 0x539 ct zone set 1
culvert-nat prerouting Nat -101
  ip saddr 169.254.7.127 tcp accept
  ip6 saddr fd16:9254:7127:1337:ffff:ffff:ffff:ffff tcp accept
  ip daddr != 127.0.0.1 tcp dport != 15008 mark & 0xfff != 0x539 redirect to :15006
  ip6 daddr != ::1 tcp dport != 15008 mark & 0xfff != 0x539 redirect to :15006
culvert-nat output Nat -101
  ip daddr 169.254.7.127 tcp accept
  ip6 daddr fd16:9254:7127:1337:ffff:ffff:ffff:ffff tcp accept
  oif != lo udp dport 53 mark & 0xfff != 0x539 redirect to :15053
  ip daddr != 127.0.0.1 tcp dport 53 mark & 0xfff != 0x539 redirect to :15053
  ip6 daddr != ::1 tcp dport 53 mark & 0xfff != 0x539 redirect to :15053
  tcp mark & 0xfff == 0x111 accept
  ip daddr != 127.0.0.1 oif lo accept
  ip6 daddr != ::1 oif lo accept
  ip daddr != 127.0.0.1 tcp mark & 0xfff != 0x539 redirect to :15001
  ip6 daddr != ::1 tcp mark & 0xfff != 0x539 redirect to :15001
";
    assert_eq!(text(&CaptureSpec::default()), want);
}

#[test]
fn without_inbound_and_dns_and_with_rerouting() {
    let spec = CaptureSpec {
        inbound: false,
        reroute_interfaces: vec!["tap0".into(), "docker0".into()],
        ipv6: false,
        dns_port: None,
        ..CaptureSpec::default()
    };
    let want = "\
culvert-mangle prerouting Filter -151
  mark & 0xfff == 0x539 ct mark set ct mark & 0xfffff000 | 0x111
culvert-mangle output Route -151
  ct mark & 0xfff == 0x111 mark set ct mark
culvert-nat prerouting Nat -101
  ip iifname tap0 tcp redirect to :15001
  ip iifname tap0 tcp return
  ip iifname docker0 tcp redirect to :15001
  ip iifname docker0 tcp return
culvert-nat output Nat -101
  ip daddr 169.254.7.127 tcp accept
  tcp mark & 0xfff == 0x111 accept
  ip daddr != 127.0.0.1 oif lo accept
  ip daddr != 127.0.0.1 tcp mark & 0xfff != 0x539 redirect to :15001
";
    assert_eq!(text(&spec), want);
}

#[test]
fn interface_names_are_checked() {
    let with = |names: &[&str]| {
        let reroute_interfaces = names.iter().map(|&name| name.into()).collect();
        ruleset(&CaptureSpec { reroute_interfaces, ..CaptureSpec::default() })
    };
    for bad in ["", "a b", "a/b", "sixteen-letters-", "tab\t", "zero\0", "del\x7f"] {
        assert!(
            matches!(with(&["eth0", bad]), Err(RulesError::Interface { name }) if *name == *bad),
            "{bad:?}"
        );
    }
    with(&["fifteen-letters", "veth@x", "gre.1"]).unwrap();
    with(&["a"; 32]).unwrap();
    assert!(matches!(with(&["a"; 33]), Err(RulesError::Interfaces { found: 33 })));
}
