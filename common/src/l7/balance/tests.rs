use std::collections::HashMap;
use std::time::Duration;

use http::StatusCode;
use proptest::prelude::*;

use super::*;
use crate::l7::outlier::Outcome;

const ALL: [Balance; 3] = [Balance::LeastRequest, Balance::RoundRobin, Balance::Random];

fn endpoints(weights: &[u32]) -> Endpoints<Arc<Host>> {
    let list = weights.iter().map(|weight| Arc::new(Host::new(*weight))).collect();
    Endpoints::new(list, Arc::new(Detector::new(Instant::now())))
}

fn outliers() -> Outliers {
    Outliers {
        consecutive_5xx: 1,
        consecutive_gateway: 0,
        consecutive_local: None,
        interval: Duration::from_secs(10),
        base_ejection: Duration::from_secs(30),
        max_ejection_percent: Some(100),
        min_health_percent: 0,
        failure_percent: None,
    }
}

/// Numbers as a random source gives them, the same in each run.
fn numbers() -> impl Iterator<Item = u64> {
    let mut state = 1_u64;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 20
    })
}

struct Picker {
    numbers: Box<dyn Iterator<Item = u64>>,
    balance: Balance,
    outliers: Option<Outliers>,
    now: Instant,
}

impl Picker {
    fn new(balance: Balance) -> Self {
        Self { numbers: Box::new(numbers()), balance, outliers: None, now: Instant::now() }
    }

    /// Index of the endpoint that is picked, where `tried` come last.
    fn pick(&mut self, of: &Endpoints<Arc<Host>>, tried: &[usize]) -> Result<usize, NoEndpoint> {
        let random = [self.numbers.next().unwrap(), self.numbers.next().unwrap()];
        let ask = Ask { balance: self.balance, outliers: self.outliers.as_ref(), random, now: self.now };
        let avoid = |host: &Arc<Host>| tried.iter().any(|index| Arc::ptr_eq(host, &of.list()[*index]));
        let avoid: Option<&Avoid<'_, Arc<Host>>> = if tried.is_empty() { None } else { Some(&avoid) };
        match of.pick(&ask, avoid)? {
            Picked::Endpoint(host) => Ok(of.list().iter().position(|one| Arc::ptr_eq(one, host)).unwrap()),
            Picked::AsAsked => panic!("passthrough"),
        }
    }

    fn shares(&mut self, of: &Endpoints<Arc<Host>>, tried: &[usize], picks: usize) -> Vec<usize> {
        let mut shares = vec![0; of.list().len()];
        (0..picks).for_each(|_| shares[self.pick(of, tried).unwrap()] += 1);
        shares
    }
}

fn eject(of: &Endpoints<Arc<Host>>, index: usize, outliers: &Outliers, now: Instant) {
    let failed = Outcome::Answered(StatusCode::INTERNAL_SERVER_ERROR);
    of.detector().record(outliers, (of.list(), &of.list()[index]), failed, now).expect("it is ejected");
}

#[test]
fn round_robin_is_exact_with_and_without_weights() {
    let mut picker = Picker::new(Balance::RoundRobin);
    let equal = endpoints(&[1, 1, 1]);
    let turn: Vec<usize> = (0..6).map(|_| picker.pick(&equal, &[]).unwrap()).collect();
    assert_eq!(turn, [0, 1, 2, 0, 1, 2]);
    let weighted = endpoints(&[10, 30, 0, 20]);
    assert_eq!(picker.shares(&weighted, &[], 60), [10, 30, 0, 20]);
    let turn: Vec<usize> = (0..6).map(|_| picker.pick(&weighted, &[]).unwrap()).collect();
    assert!(turn.windows(2).filter(|pair| pair[0] == pair[1]).count() <= 1, "spread: {turn:?}");
    let far_apart = endpoints(&[u32::MAX, 1]);
    let shares = picker.shares(&far_apart, &[], 5000);
    assert!(shares[1] >= 1 && shares[1] <= 3, "{shares:?}");
}

#[test]
fn the_one_with_less_to_do_for_its_weight_is_taken() {
    let of = endpoints(&[1, 1]);
    let _busy: Vec<Active<Arc<Host>>> = (0..3).map(|_| Active::new(Arc::clone(&of.list()[0]))).collect();
    assert_eq!(of.list()[0].active(), 3);
    let shares = Picker::new(Balance::LeastRequest).shares(&of, &[], 1000);
    assert!((200..300).contains(&shares[0]), "only where it was drawn twice: {shares:?}");
    drop(_busy);
    assert_eq!(of.list()[0].active(), 0);
    let of = endpoints(&[4, 1]);
    let _busy = [Active::new(Arc::clone(&of.list()[0])), Active::new(Arc::clone(&of.list()[1]))];
    let shares = Picker::new(Balance::LeastRequest).shares(&of, &[], 1000);
    assert!(shares[0] > 900, "one request is less to it than to the other: {shares:?}");
}

#[test]
fn what_was_tried_comes_only_if_nothing_else_can() {
    for balance in ALL {
        let of = endpoints(&[1, 1, 1]);
        let mut picker = Picker::new(balance);
        for _ in 0..50 {
            assert_eq!(picker.pick(&of, &[0, 2]), Ok(1), "{balance:?}");
        }
        assert!(picker.shares(&of, &[0, 1, 2], 300).iter().all(|share| *share > 50), "{balance:?}");
    }
}

#[test]
fn ejected_endpoints_get_nothing_until_they_are_too_many() {
    for balance in ALL {
        let of = endpoints(&[1, 1, 1, 1]);
        let mut picker = Picker::new(balance);
        let outliers = outliers();
        eject(&of, 0, &outliers, picker.now);
        eject(&of, 1, &outliers, picker.now);
        assert!(picker.shares(&of, &[], 400).iter().all(|share| *share > 50), "nobody asked for ejection");
        picker.outliers = Some(outliers.clone());
        let shares = picker.shares(&of, &[], 400);
        assert!(shares[..2] == [0, 0] && shares[2] > 100 && shares[3] > 100, "{balance:?} {shares:?}");
        assert_eq!(picker.pick(&of, &[2]), Ok(3), "tried and ejected ones are left out");
        assert!(matches!(picker.pick(&of, &[2, 3]), Ok(2 | 3)), "a tried one rather than an ejected one");
        picker.outliers = Some(Outliers { min_health_percent: 51, ..outliers.clone() });
        assert!(picker.shares(&of, &[], 400).iter().all(|share| *share > 50), "{balance:?}: panic");
        eject(&of, 2, &outliers, picker.now);
        eject(&of, 3, &outliers, picker.now);
        picker.outliers = Some(outliers);
        let none = picker.pick(&of, &[]).unwrap_err();
        assert_eq!(none, NoEndpoint { ready: 4, ejected: 4 });
        assert_eq!(none.to_string(), "no healthy upstream: 4 endpoints are ready, 4 of them are ejected");
        assert_eq!(picker.pick(&of, &[1]), Err(none));
    }
}

#[test]
fn without_endpoints_there_is_none() {
    for balance in ALL {
        for weights in [&[][..], &[0], &[0, 0]] {
            let ready = weights.len();
            let none = Picker::new(balance).pick(&endpoints(weights), &[]);
            assert_eq!(none, Err(NoEndpoint { ready, ejected: 0 }), "{balance:?} {weights:?}");
        }
        assert_eq!(Picker::new(balance).pick(&endpoints(&[0, 3]), &[]), Ok(1));
    }
}

#[test]
fn passthrough_asks_no_endpoint() {
    let ask = Ask { balance: Balance::Passthrough, outliers: None, random: [0, 0], now: Instant::now() };
    assert!(matches!(endpoints(&[]).pick(&ask, None), Ok(Picked::AsAsked)));
}

#[test]
fn members_of_a_subset_are_those_it_names() {
    let uid = |name: &str| WorkloadUid(name.into());
    let subset = Subset { members: Arc::new([uid("a")].into()) };
    assert!(is_member(Some(&subset), &uid("a")) && !is_member(Some(&subset), &uid("b")));
    assert!(is_member(None, &uid("b")));
}

proptest! {
    /// Shares become what weights say, whatever the weights.
    #[test]
    fn weights_converge(
        weights in prop::collection::vec(0_u32..20, 1..6),
        balance in prop::sample::select(ALL.to_vec()),
    ) {
        let total: u32 = weights.iter().sum();
        prop_assume!(total > 0);
        let shares = Picker::new(balance).shares(&endpoints(&weights), &[], 20_000);
        for (weight, share) in weights.iter().zip(shares) {
            let want = f64::from(*weight) / f64::from(total);
            let got = share as f64 / 20_000.0;
            prop_assert!((got - want).abs() < 0.02, "{weights:?} {balance:?}: {got} for {want}");
            prop_assert!(*weight > 0 || share == 0);
        }
    }

    /// No request ever leaves the subset, whatever was tried and ejected.
    #[test]
    fn no_endpoint_outside_its_subset(
        members in prop::collection::hash_set(0_usize..8, 1..8),
        tried in prop::collection::vec(0_usize..8, 0..4),
        ejected in prop::collection::hash_set(0_usize..8, 0..8),
        balance in prop::sample::select(ALL.to_vec()),
    ) {
        let uids: Vec<WorkloadUid> = (0..8).map(|index| WorkloadUid(format!("pod-{index}").into())).collect();
        let subset = Subset { members: Arc::new(members.iter().map(|index| uids[*index].clone()).collect()) };
        let hosts: HashMap<usize, Arc<Host>> = (0..8).map(|index| (index, Arc::new(Host::new(1)))).collect();
        let chosen = (0..8).filter(|index| is_member(Some(&subset), &uids[*index]));
        let list: Vec<Arc<Host>> = chosen.map(|index| Arc::clone(&hosts[&index])).collect();
        let of = Endpoints::new(list, Arc::new(Detector::new(Instant::now())));
        let outliers = outliers();
        let now = Instant::now();
        for index in ejected.intersection(&members) {
            let failed = Outcome::Answered(StatusCode::INTERNAL_SERVER_ERROR);
            of.detector().record(&outliers, (of.list(), &hosts[index]), failed, now);
        }
        let avoid = |host: &Arc<Host>| tried.iter().any(|index| Arc::ptr_eq(host, &hosts[index]));
        for random in numbers().take(20) {
            let ask = Ask { balance, outliers: Some(&outliers), random: [random, random >> 7], now };
            match of.pick(&ask, Some(&avoid)) {
                Ok(Picked::Endpoint(host)) => {
                    prop_assert!(members.iter().any(|index| Arc::ptr_eq(host, &hosts[index])));
                    prop_assert!(!host.is_ejected());
                }
                Ok(Picked::AsAsked) => prop_assert!(false),
                Err(none) => prop_assert_eq!(none.ready, none.ejected),
            }
        }
    }
}
