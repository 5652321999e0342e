use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::model::{Clause, Match, Rule, Scope, ServiceAccountMatch, StringMatch};

fn key(name: &str) -> PolicyKey {
    PolicyKey { namespace: "shop".into(), name: name.into() }
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Authorization {
    Authorization { key: key(name), scope: Scope::Namespace, action, dry_run: false, rules }
}

/// One rule with one clause of these matches.
fn one_clause(matches: Vec<Match>) -> Vec<Rule> {
    vec![Rule { clauses: vec![Clause { matches }] }]
}

fn all() -> Vec<Rule> {
    vec![Rule::default()]
}

fn ports(ports: &[u16]) -> Match {
    Match { destination_ports: ports.to_vec(), ..Match::default() }
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

fn shared(policies: &[Authorization]) -> Vec<Arc<Authorization>> {
    policies.iter().cloned().map(Arc::new).collect()
}

/// `peer` from 10.0.0.1 to 10.0.0.9:8080.
fn facts(peer: Option<&SpiffeId>) -> Facts<'_> {
    Facts {
        peer,
        source_ip: "10.0.0.1".parse().unwrap(),
        destination_ip: "10.0.0.9".parse().unwrap(),
        destination_port: 8080,
    }
}

fn cart() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()
}

/// The verdict on a connection by `cart` (or without identity), as text.
fn verdict(policies: &[Authorization], peer: Option<&SpiffeId>) -> String {
    match authorize(&shared(policies), &[], &facts(peer)).verdict {
        Verdict::Allowed { by: None } => "allowed".to_owned(),
        Verdict::Allowed { by: Some(key) } => format!("allowed by {key}"),
        Verdict::Denied(denial) => denial.to_string(),
    }
}

/// Whether a policy with only `rules` matches a connection by `cart`.
#[track_caller]
fn check(what: &str, rules: Vec<Rule>, want: bool) {
    for (action, yes, no) in [
        (Action::Deny, "explicitly denied by: shop/p", "allowed"),
        (Action::Allow, "allowed by shop/p", "allow policies exist, but none allowed: shop/p"),
    ] {
        let got = verdict(&[policy("p", action, rules.clone())], Some(&cart()));
        assert_eq!(got, if want { yes } else { no }, "{what}, {action:?}");
    }
}

#[test]
fn rules_clauses_and_matches_nest_as_documented() {
    let (yes, no) = (|| ports(&[8080]), || ports(&[80]));
    let clause = |matches: Vec<Match>| Clause { matches };
    check("no rule never matches", vec![], false);
    check("a rule without clauses matches everything", all(), true);
    check("a clause without matches is true", one_clause(vec![]), true);
    check("a clause of empty matches is false", one_clause(vec![Match::default()]), false);
    check("an empty match beside a true one is skipped", one_clause(vec![Match::default(), yes()]), true);
    check("an empty match beside a false one is skipped", one_clause(vec![no(), Match::default()]), false);
    check("matches are OR", one_clause(vec![no(), yes()]), true);
    check("clauses are AND", vec![Rule { clauses: vec![clause(vec![yes()]), clause(vec![no()])] }], false);
    check(
        "clauses are AND, all true",
        vec![Rule { clauses: vec![clause(vec![yes()]), clause(vec![])] }],
        true,
    );
    let rule = |matches| Rule { clauses: vec![clause(matches)] };
    check("rules are OR", vec![rule(vec![no()]), rule(vec![yes()])], true);
    check("rules are OR, none true", vec![rule(vec![no()]), rule(vec![no()])], false);
    let both = Match { namespaces: vec![exact("web")], ..yes() };
    check("fields of a match are AND", one_clause(vec![both]), false);
}

#[test]
fn each_field_compares_what_it_names() {
    let m = Match::default;
    let account =
        |ns: &str, sa: &str| vec![ServiceAccountMatch { namespace: ns.into(), service_account: sa.into() }];
    let nets = |text: &str| Some(vec![text.parse().unwrap()]);
    let cart = || vec![exact("cluster.local/ns/shop/sa/cart")];
    let rows: Vec<(&str, Match, bool)> = vec![
        ("principal", Match { principals: cart(), ..m() }, true),
        ("principal with scheme", Match { principals: vec![exact(&self::cart().to_string())], ..m() }, false),
        (
            "principal, other case",
            Match { principals: vec![exact("cluster.local/ns/Shop/sa/cart")], ..m() },
            false,
        ),
        (
            "principal prefix",
            Match { principals: vec![StringMatch::Prefix("cluster.local/ns/shop/".into())], ..m() },
            true,
        ),
        ("principal suffix", Match { principals: vec![StringMatch::Suffix("/sa/cart".into())], ..m() }, true),
        ("principal presence", Match { principals: vec![StringMatch::Presence], ..m() }, true),
        ("not principal", Match { not_principals: cart(), ..m() }, false),
        ("not another principal", Match { not_principals: vec![exact("x")], ..m() }, true),
        (
            "positive and negative",
            Match { namespaces: vec![exact("shop")], not_principals: cart(), ..m() },
            false,
        ),
        ("namespace", Match { namespaces: vec![exact("shop")], ..m() }, true),
        ("namespace, any of", Match { namespaces: vec![exact("web"), exact("shop")], ..m() }, true),
        ("not namespace, any of", Match { not_namespaces: vec![exact("web"), exact("shop")], ..m() }, false),
        ("account", Match { service_accounts: account("shop", "cart"), ..m() }, true),
        ("account elsewhere", Match { service_accounts: account("web", "cart"), ..m() }, false),
        ("not account", Match { not_service_accounts: account("shop", "cart"), ..m() }, false),
        ("port", ports(&[80, 8080]), true),
        ("not port", Match { not_destination_ports: vec![8080], ..m() }, false),
        ("source", Match { source_ips: nets("10.0.0.0/24"), ..m() }, true),
        ("source, mapped block", Match { source_ips: nets("::ffff:10.0.0.0/120"), ..m() }, true),
        ("source, other family", Match { source_ips: nets("::/0"), ..m() }, false),
        ("source elsewhere", Match { source_ips: nets("10.0.1.0/24"), ..m() }, false),
        ("not source", Match { not_source_ips: nets("10.0.0.1/32"), ..m() }, false),
        ("destination", Match { destination_ips: nets("10.0.0.9/32"), ..m() }, true),
        ("destination is not the source", Match { destination_ips: nets("10.0.0.1/32"), ..m() }, false),
        ("not destination", Match { not_destination_ips: nets("10.0.0.9/32"), ..m() }, false),
    ];
    for (what, m, want) in rows {
        check(what, one_clause(vec![m]), want);
    }
}

#[test]
fn plaintext_has_no_principal_and_the_empty_namespace() {
    let m = Match::default;
    let account = vec![ServiceAccountMatch { namespace: "".into(), service_account: "".into() }];
    let any = || vec![StringMatch::Prefix("".into())];
    for (what, m, want) in [
        ("any principal", Match { principals: any(), ..m() }, false),
        ("present principal", Match { principals: vec![StringMatch::Presence], ..m() }, false),
        (
            "no principal: STRICT as istiod writes it",
            Match { not_principals: vec![StringMatch::Presence], ..m() },
            true,
        ),
        ("present namespace", Match { namespaces: vec![StringMatch::Presence], ..m() }, false),
        ("namespace with an empty prefix", Match { namespaces: any(), ..m() }, true),
        ("not namespace", Match { not_namespaces: vec![exact("shop")], ..m() }, true),
        ("account", Match { service_accounts: account, ..m() }, false),
    ] {
        let got = verdict(&[policy("p", Action::Deny, one_clause(vec![m]))], None);
        assert_eq!(got, if want { "explicitly denied by: shop/p" } else { "allowed" }, "{what}");
    }
}

#[test]
fn an_unreadable_address_list_decides_against_the_peer() {
    let m = Match::default;
    for (what, m) in [
        ("source", Match { source_ips: Some(vec![]), ..m() }),
        ("not source", Match { not_source_ips: Some(vec![]), ..m() }),
        ("destination", Match { destination_ips: Some(vec![]), ..m() }),
        ("not destination", Match { not_destination_ips: Some(vec![]), ..m() }),
    ] {
        let rules = one_clause(vec![m]);
        let deny = verdict(&[policy("p", Action::Deny, rules.clone())], Some(&cart()));
        assert_eq!(deny, "explicitly denied by: shop/p", "{what}");
        let allow = verdict(&[policy("p", Action::Allow, rules)], Some(&cart()));
        assert_eq!(allow, "allow policies exist, but none allowed: shop/p", "{what}");
    }
}

#[test]
fn addresses_that_a_dual_stack_socket_reports_are_ipv4() {
    let nets = Some(vec!["10.0.0.0/24".parse().unwrap()]);
    let m = Match { source_ips: nets.clone(), destination_ips: nets, ..Match::default() };
    let policies = shared(&[policy("p", Action::Allow, one_clause(vec![m]))]);
    let facts = Facts {
        peer: None,
        source_ip: "::ffff:10.0.0.1".parse().unwrap(),
        destination_ip: "::ffff:10.0.0.9".parse().unwrap(),
        destination_port: 1,
    };
    assert_eq!(authorize(&policies, &[], &facts).verdict, Verdict::Allowed { by: Some(key("p")) });
}

#[test]
fn deny_then_missing_then_allow() {
    let (deny, allow) = (policy("d", Action::Deny, all()), policy("a", Action::Allow, all()));
    let none = policy("n", Action::Allow, vec![]);
    let decide = |policies: &[&Authorization], missing: &[PolicyKey]| {
        let policies: Vec<_> = policies.iter().map(|p| Arc::new((*p).clone())).collect();
        authorize(&policies, missing, &facts(Some(&cart()))).verdict
    };
    let missing = [key("gone")];
    assert_eq!(decide(&[], &[]), Verdict::Allowed { by: None });
    assert_eq!(decide(&[&none, &allow], &[]), Verdict::Allowed { by: Some(key("a")) });
    assert_eq!(decide(&[&allow, &deny], &[]), Verdict::Denied(Denial::ByPolicy(key("d"))));
    assert_eq!(decide(&[&allow], &missing), Verdict::Denied(Denial::Missing(key("gone"))));
    assert_eq!(decide(&[&deny], &missing), Verdict::Denied(Denial::ByPolicy(key("d"))));
    let denied = Denial::NoneAllowed { policies: vec![key("n")] };
    assert_eq!(decide(&[&none], &[]), Verdict::Denied(denied));
}

#[test]
fn dry_run_is_reported_and_changes_nothing() {
    let dry = |name: &str, action, rules| Authorization { dry_run: true, ..policy(name, action, rules) };
    let run = |policies: &[Authorization]| {
        let decision = authorize(&shared(policies), &[], &facts(Some(&cart())));
        assert_eq!(decision.denial(), None);
        decision.dry_run.iter().map(DryRun::to_string).collect::<Vec<_>>()
    };
    let (deny, allow) = (dry("d", Action::Deny, all()), dry("a", Action::Allow, all()));
    let (quiet, none) = (dry("q", Action::Deny, vec![]), dry("n", Action::Allow, vec![]));
    assert_eq!(run(std::slice::from_ref(&quiet)), Vec::<String>::new());
    assert_eq!(run(std::slice::from_ref(&none)), ["no allow policies match: shop/n"]);
    assert_eq!(run(&[deny, quiet, none, allow]), ["deny policy match: shop/d", "allow policy match: shop/a"]);
}

#[test]
fn a_denial_names_a_few_policies_only() {
    let policies = (1..=8).map(|i| key(&format!("p{i}"))).collect();
    assert_eq!(
        Denial::NoneAllowed { policies }.to_string(),
        "allow policies exist, but none allowed: shop/p1, shop/p2, shop/p3, shop/p4, shop/p5 and 3 more"
    );
    let missing = Denial::Missing(key("gone")).to_string();
    assert!(missing.starts_with("policy shop/gone is attached to the workload but not known"), "{missing}");
}

/// The evaluation as its description reads, slow and on texts; shares no code with the real one.
mod obvious {
    use super::*;

    /// An address or block as its family and bits.
    fn bits(ip: IpAddr) -> String {
        match ip {
            IpAddr::V4(v4) => v4.octets().iter().fold("v4 ".to_owned(), |s, o| s + &format!("{o:08b}")),
            IpAddr::V6(v6) => match v6.octets() {
                [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => bits(IpAddr::from([a, b, c, d])),
                octets => octets.iter().fold("v6 ".to_owned(), |s, o| s + &format!("{o:08b}")),
            },
        }
    }

    fn in_block(ip: IpAddr, block: &ipnet::IpNet) -> bool {
        let start = bits(block.network());
        let hidden = usize::from(block.max_prefix_len() - block.prefix_len());
        let fixed = start.len() - hidden; // of a mapped block too: it loses 96 bits at the other end
        bits(ip).get(..fixed) == start.get(..fixed)
    }

    fn is(text: &str, m: &StringMatch) -> bool {
        let (head, tail, whole) = match m {
            StringMatch::Presence => return text.len() > 1 || text.len() == 1,
            StringMatch::Exact(t) => (None, None, Some(t)),
            StringMatch::Prefix(t) => (Some(t), None, None),
            StringMatch::Suffix(t) => (None, Some(t), None),
        };
        whole.is_none_or(|t| t.to_string() == text)
            && head.is_none_or(|t| text.find(&**t) == Some(0))
            && tail.is_none_or(|t| text.rfind(&**t).is_some_and(|at| at + t.len() == text.len()))
    }

    /// Each type of a match: does it constrain, is a positive true, is a negative true, has it positives?
    fn match_holds(m: &Match, action: Action, f: &Facts<'_>) -> Option<bool> {
        let uri = f.peer.map(|p| p.to_string()).unwrap_or_default();
        let parts: Vec<&str> = uri.split('/').collect();
        let (namespace, account) = match parts[..] {
            ["spiffe:", "", _, "ns", ns, "sa", sa] => (ns, sa),
            _ => ("", ""),
        };
        let principal = uri.replacen("spiffe://", "", 1);
        let mut constraints = 0;
        let mut broken = 0;
        let mut each = |positive: Vec<bool>, negative: Vec<bool>| {
            constraints += positive.len() + negative.len();
            broken += usize::from(!positive.is_empty() && !positive.contains(&true));
            broken += usize::from(negative.contains(&true));
        };
        let names = |l: &[StringMatch]| l.iter().map(|m| is(namespace, m)).collect();
        each(names(&m.namespaces), names(&m.not_namespaces));
        let principals = |l: &[StringMatch]| l.iter().map(|m| !uri.is_empty() && is(&principal, m)).collect();
        each(principals(&m.principals), principals(&m.not_principals));
        let accounts = |l: &[ServiceAccountMatch]| {
            let same = |a: &ServiceAccountMatch| format!("{}/{}", a.namespace, a.service_account);
            l.iter().map(|a| !uri.is_empty() && same(a) == format!("{namespace}/{account}")).collect()
        };
        each(accounts(&m.service_accounts), accounts(&m.not_service_accounts));
        let port = |l: &[u16]| l.iter().map(|p| p.to_string() == f.destination_port.to_string()).collect();
        each(port(&m.destination_ports), port(&m.not_destination_ports));
        // Nothing readable: for a DENY as if a positive were true and no negative, for an ALLOW the contrary.
        let deny = action == Action::Deny;
        let blocks = |l: &Option<Vec<ipnet::IpNet>>, ip: IpAddr, unreadable: bool| match l {
            Some(l) if l.is_empty() => vec![unreadable],
            Some(l) => l.iter().map(|b| in_block(ip, b)).collect(),
            None => vec![],
        };
        each(blocks(&m.source_ips, f.source_ip, deny), blocks(&m.not_source_ips, f.source_ip, !deny));
        let to = f.destination_ip;
        each(blocks(&m.destination_ips, to, deny), blocks(&m.not_destination_ips, to, !deny));
        (constraints > 0).then_some(broken == 0)
    }

    pub(super) fn matches(p: &Authorization, f: &Facts<'_>) -> bool {
        let mut found = false;
        for rule in &p.rules {
            let mut false_clauses = 0;
            for clause in &rule.clauses {
                let results: Vec<bool> =
                    clause.matches.iter().filter_map(|m| match_holds(m, p.action, f)).collect();
                let is_true = clause.matches.is_empty() || results.contains(&true);
                false_clauses += usize::from(!is_true);
            }
            found |= false_clauses == 0;
        }
        found
    }

    pub(super) fn allowed(policies: &[Authorization], missing: &[PolicyKey], f: &Facts<'_>) -> bool {
        let in_force: Vec<_> = policies.iter().filter(|p| !p.dry_run).collect();
        let denies = in_force.iter().filter(|p| p.action == Action::Deny && matches(p, f)).count();
        let allows: Vec<_> = in_force.iter().filter(|p| p.action == Action::Allow).collect();
        let allowing = allows.iter().filter(|p| matches(p, f)).count();
        denies == 0 && missing.is_empty() && (allows.is_empty() || allowing > 0)
    }
}

fn identity() -> impl Strategy<Value = Option<SpiffeId>> {
    let domain = prop::sample::select(vec!["cluster.local", "other"]);
    let ns = prop::sample::select(vec!["shop", "web"]);
    let sa = prop::sample::select(vec!["cart", "a"]);
    prop::option::weighted(0.75, (domain, ns, sa).prop_map(|(d, n, s)| SpiffeId::new(d, n, s).unwrap()))
}

fn string_match() -> impl Strategy<Value = StringMatch> {
    let texts =
        ["", "shop", "web", "sh", "cart", "/sa/cart", "cluster.local/", "cluster.local/ns/shop/sa/cart"];
    (0..4u8, prop::sample::select(texts.to_vec())).prop_map(|(kind, text)| match kind {
        0 => StringMatch::Presence,
        1 => StringMatch::Prefix(text.into()),
        2 => StringMatch::Suffix(text.into()),
        _ => exact(text),
    })
}

fn blocks() -> impl Strategy<Value = Vec<ipnet::IpNet>> {
    let blocks =
        ["10.0.0.0/24", "10.0.0.1/32", "0.0.0.0/0", "10.0.1.0/24", "fd00::/8", "::/0", "::ffff:10.0.0.0/120"];
    let block = prop::sample::select(blocks.to_vec()).prop_map(|b| b.parse().unwrap());
    prop::collection::vec(block, 0..3)
}

/// Up to three fields said something about: with all of them nothing would ever match.
fn one_match() -> impl Strategy<Value = Match> {
    let account = (prop::sample::select(vec!["shop", "web"]), prop::sample::select(vec!["cart", "a"]));
    let account =
        account.prop_map(|(n, s)| ServiceAccountMatch { namespace: n.into(), service_account: s.into() });
    let port = prop::sample::select(vec![80u16, 8080]);
    let field = (0..12u8, string_match(), account, blocks(), port);
    prop::collection::vec(field, 0..4).prop_map(|fields| {
        let mut m = Match::default();
        for (field, text, account, blocks, port) in fields {
            match field {
                0 => m.namespaces.push(text),
                1 => m.not_namespaces.push(text),
                2 => m.principals.push(text),
                3 => m.not_principals.push(text),
                4 => m.service_accounts.push(account),
                5 => m.not_service_accounts.push(account),
                6 => m.source_ips = Some(blocks),
                7 => m.not_source_ips = Some(blocks),
                8 => m.destination_ips = Some(blocks),
                9 => m.not_destination_ips = Some(blocks),
                10 => m.destination_ports.push(port),
                _ => m.not_destination_ports.push(port),
            }
        }
        m
    })
}

fn any_policy() -> impl Strategy<Value = Authorization> {
    use prop::collection::vec;
    let clause = vec(one_match(), 0..3).prop_map(|matches| Clause { matches });
    let rule = vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    let action = prop::sample::select(vec![Action::Allow, Action::Deny]);
    (0..100u8, action, prop::bool::weighted(0.25), vec(rule, 0..3)).prop_map(
        |(name, action, dry_run, rules)| Authorization {
            dry_run,
            ..policy(&format!("p{name}"), action, rules)
        },
    )
}

fn policies() -> impl Strategy<Value = Vec<Authorization>> {
    prop::collection::vec(any_policy(), 0..5)
}

/// Named but absent policies; mostly none.
fn missing() -> impl Strategy<Value = Vec<PolicyKey>> {
    prop::bool::weighted(0.15).prop_map(|some| if some { vec![key("gone")] } else { vec![] })
}

/// Peer, source address, destination address, port.
type Connection = (Option<SpiffeId>, IpAddr, IpAddr, u16);

fn connection() -> impl Strategy<Value = Connection> {
    let ip = || {
        let ips = ["10.0.0.1", "10.0.1.1", "::ffff:10.0.0.1", "fd00::1", "192.0.2.1"];
        prop::sample::select(ips.to_vec()).prop_map(|ip| ip.parse().unwrap())
    };
    (identity(), ip(), ip(), prop::sample::select(vec![80u16, 8080]))
}

fn facts_of(c: &Connection) -> Facts<'_> {
    Facts { peer: c.0.as_ref(), source_ip: c.1, destination_ip: c.2, destination_port: c.3 }
}

proptest! {
    #![proptest_config(ProptestConfig { max_global_rejects: 100_000, ..ProptestConfig::with_cases(1024) })]

    /// The evaluator says what the obvious one says, and its reason is true.
    #[test]
    fn equals_the_obvious_evaluator(set in policies(), missing in missing(), c in connection()) {
        let facts = facts_of(&c);
        let decision = authorize(&shared(&set), &missing, &facts);
        prop_assert_eq!(decision.denial().is_none(), obvious::allowed(&set, &missing, &facts));
        let is_match = |key: &PolicyKey, action, dry_run| set.iter().any(|p| {
            p.key == *key && p.action == action && p.dry_run == dry_run && obvious::matches(p, &facts)
        });
        match &decision.verdict {
            Verdict::Allowed { by: None } => {
                prop_assert!(!set.iter().any(|p| p.action == Action::Allow && !p.dry_run));
            }
            Verdict::Allowed { by: Some(key) } => prop_assert!(is_match(key, Action::Allow, false)),
            Verdict::Denied(Denial::ByPolicy(key)) => prop_assert!(is_match(key, Action::Deny, false)),
            Verdict::Denied(Denial::Missing(key)) => prop_assert!(missing.contains(key)),
            Verdict::Denied(Denial::NoneAllowed { policies }) => prop_assert!(!policies.is_empty()),
        }
        let would_deny = decision.dry_run.iter().filter(|d| matches!(d, DryRun::WouldDeny(_))).count();
        let dry_denies = set.iter().filter(|p| p.dry_run && p.action == Action::Deny);
        prop_assert_eq!(would_deny, dry_denies.filter(|p| obvious::matches(p, &facts)).count());
    }

    /// Being watched changes nothing, and what is told is what was decided.
    #[test]
    fn a_trace_is_the_evaluation(set in policies(), missing in missing(), c in connection()) {
        let (set, facts) = (shared(&set), facts_of(&c));
        let (decision, traces) = authorize_traced(&set, &missing, &facts);
        prop_assert_eq!(&decision, &authorize(&set, &missing, &facts));
        for trace in &traces {
            let rules = &trace.rules;
            prop_assert_eq!(trace.matched, rules.iter().any(|rule| rule.matched));
            for rule in rules {
                prop_assert_eq!(rule.matched, rule.clauses.iter().all(|clause| clause.held));
                for one in rule.clauses.iter().flat_map(|clause| &clause.matches) {
                    prop_assert_eq!(one.held, one.fields.iter().all(|field| field.held));
                }
            }
        }
        let told = |wanted: &PolicyKey| traces.iter().any(|t| t.policy == wanted.to_string() && t.matched);
        match &decision.verdict {
            Verdict::Allowed { by: Some(key) } | Verdict::Denied(Denial::ByPolicy(key)) => prop_assert!(told(key)),
            Verdict::Allowed { by: None } | Verdict::Denied(Denial::NoneAllowed { .. } | Denial::Missing(_)) => {
                prop_assert!(!traces.iter().any(|t| t.matched && !t.dry_run));
            }
        }
    }

    /// A matching DENY wins whatever else is configured, wherever it stands.
    /// Source: Istio AuthorizationPolicy reference, order in which DENY and ALLOW are evaluated.
    #[test]
    fn a_matching_deny_always_wins(
        mut set in policies(), missing in missing(), deny in any_policy(), at in any::<prop::sample::Index>(), c in connection(),
    ) {
        let mut deny = Authorization { action: Action::Deny, dry_run: false, ..deny };
        if !obvious::matches(&deny, &facts_of(&c)) {
            deny.rules.push(Rule::default());
        }
        set.insert(at.index(set.len() + 1), deny);
        let decision = authorize(&shared(&set), &missing, &facts_of(&c));
        prop_assert!(matches!(decision.verdict, Verdict::Denied(Denial::ByPolicy(_))));
    }

    /// Dry-run policies change no verdict, not even its reason.
    #[test]
    fn dry_run_never_changes_the_verdict(set in policies(), missing in missing(), c in connection()) {
        let in_force: Vec<_> = set.iter().filter(|p| !p.dry_run).cloned().collect();
        let with = authorize(&shared(&set), &missing, &facts_of(&c)).verdict;
        prop_assert_eq!(with, authorize(&shared(&in_force), &missing, &facts_of(&c)).verdict);
    }

    /// No DENY that is added lets through what was denied.
    #[test]
    fn a_further_deny_allows_nothing(mut set in policies(), missing in missing(), deny in any_policy(), c in connection()) {
        prop_assume!(authorize(&shared(&set), &missing, &facts_of(&c)).denial().is_some());
        set.push(Authorization { action: Action::Deny, ..deny });
        prop_assert!(authorize(&shared(&set), &missing, &facts_of(&c)).denial().is_some());
    }

    /// Without ALLOW policies, what no DENY matches is allowed.
    #[test]
    fn without_allow_policies_the_rest_is_allowed(set in policies(), c in connection()) {
        let denies: Vec<_> = set.into_iter().filter(|p| p.action == Action::Deny).collect();
        let matched = denies.iter().any(|p| !p.dry_run && obvious::matches(p, &facts_of(&c)));
        let decision = authorize(&shared(&denies), &[], &facts_of(&c));
        prop_assert_eq!(decision.denial().is_some(), matched);
    }

    /// The order of policies decides nothing.
    #[test]
    fn order_does_not_matter(set in policies(), missing in missing(), c in connection()) {
        let back: Vec<_> = set.iter().rev().cloned().collect();
        let forth = authorize(&shared(&set), &missing, &facts_of(&c));
        let back = authorize(&shared(&back), &missing, &facts_of(&c));
        prop_assert_eq!(forth.denial().is_some(), back.denial().is_some());
    }

    /// Address lists of which nothing can be read any more never let through what was denied.
    #[test]
    fn unreadable_lists_allow_nothing(set in policies(), missing in missing(), which in 1..16u8, c in connection()) {
        prop_assume!(authorize(&shared(&set), &missing, &facts_of(&c)).denial().is_some());
        let mut unreadable = set;
        let matches = unreadable.iter_mut().flat_map(|p| &mut p.rules).flat_map(|r| &mut r.clauses);
        for m in matches.flat_map(|c| &mut c.matches) {
            let lists =
                [&mut m.source_ips, &mut m.not_source_ips, &mut m.destination_ips, &mut m.not_destination_ips];
            for (_, list) in lists.into_iter().enumerate().filter(|(i, _)| which >> i & 1 == 1) {
                list.iter_mut().for_each(Vec::clear);
            }
        }
        prop_assert!(authorize(&shared(&unreadable), &missing, &facts_of(&c)).denial().is_some());
    }
}
