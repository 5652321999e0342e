use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use Outcome::{Answered, Connected, Failed, Opened, TimedOut};

const OK: Outcome = Answered(StatusCode::OK);
const BAD: Outcome = Answered(StatusCode::INTERNAL_SERVER_ERROR);
const GATEWAY: Outcome = Answered(StatusCode::BAD_GATEWAY);

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Istio's defaults with everything allowed to go.
fn outliers() -> Outliers {
    Outliers {
        consecutive_5xx: 5,
        consecutive_gateway: 0,
        consecutive_local: None,
        interval: s(10),
        base_ejection: s(30),
        max_ejection_percent: Some(100),
        min_health_percent: 0,
        failure_percent: None,
    }
}

struct Watch {
    outliers: Outliers,
    hosts: Vec<Arc<Host>>,
    detector: Detector,
    began: Instant,
}

impl Watch {
    fn new(hosts: usize, outliers: Outliers) -> Self {
        let began = Instant::now();
        let hosts = (0..hosts).map(|_| Arc::new(Host::new(1))).collect();
        Self { outliers, hosts, detector: Detector::new(began), began }
    }

    fn see(&self, host: usize, outcome: Outcome, at: Duration) -> Option<Ejection> {
        self.detector.record(&self.outliers, (&self.hosts, &self.hosts[host]), outcome, self.began + at)
    }

    /// How many of these outcomes it takes.
    fn after(&self, host: usize, outcome: Outcome, at: Duration) -> Option<(usize, Cause)> {
        (1..=20).find_map(|count| self.see(host, outcome, at).map(|ejection| (count, ejection.cause)))
    }

    fn ejected(&self, at: Duration) -> Vec<usize> {
        self.detector.sweep(&self.outliers, &self.hosts, self.began + at);
        (0..self.hosts.len()).filter(|index| self.hosts[*index].is_ejected()).collect()
    }
}

#[test]
fn each_trigger_counts_what_is_its_own() {
    let split = Outliers { consecutive_local: Some(3), ..outliers() };
    let gateway = Outliers { consecutive_gateway: 2, ..outliers() };
    let off = Outliers { consecutive_5xx: 0, ..outliers() };
    for (outliers, outcome, want) in [
        (outliers(), BAD, Some((5, Cause::Consecutive5xx))),
        (outliers(), GATEWAY, Some((5, Cause::Consecutive5xx))),
        (outliers(), Failed, Some((5, Cause::Consecutive5xx))),
        (outliers(), TimedOut, Some((5, Cause::Consecutive5xx))),
        (outliers(), OK, None),
        (outliers(), Answered(StatusCode::NOT_FOUND), None),
        (outliers(), Connected, None),
        (gateway.clone(), GATEWAY, Some((2, Cause::ConsecutiveGateway))),
        (gateway.clone(), BAD, Some((5, Cause::Consecutive5xx))),
        (gateway.clone(), TimedOut, Some((2, Cause::ConsecutiveGateway))),
        (gateway, Failed, Some((2, Cause::ConsecutiveGateway))),
        (split.clone(), Failed, Some((3, Cause::ConsecutiveLocalOrigin))),
        (split.clone(), TimedOut, Some((3, Cause::ConsecutiveLocalOrigin))),
        (split, BAD, Some((5, Cause::Consecutive5xx))),
        (off.clone(), BAD, None),
        (off, Failed, None),
    ] {
        assert_eq!(Watch::new(2, outliers.clone()).after(0, outcome, s(1)), want, "{outliers:?} {outcome:?}");
    }
}

#[test]
fn a_limit_that_was_lowered_is_passed() {
    let mut watch = Watch::new(2, outliers());
    (0..4).for_each(|_| assert_eq!(watch.see(0, BAD, s(0)), None));
    watch.outliers.consecutive_5xx = 3;
    assert!(watch.see(0, BAD, s(0)).is_some());
}

#[test]
fn any_success_begins_anew() {
    let watch = Watch::new(2, outliers());
    for success in [OK, Answered(StatusCode::NOT_FOUND), Opened] {
        (0..4).for_each(|_| assert_eq!(watch.see(0, BAD, s(1)), None));
        assert_eq!(watch.see(0, success, s(1)), None);
    }
    assert_eq!(watch.after(0, BAD, s(1)), Some((5, Cause::Consecutive5xx)));
    let split = Watch::new(2, Outliers { consecutive_local: Some(3), ..outliers() });
    for success in [Connected, Opened] {
        (0..2).for_each(|_| assert_eq!(split.see(0, Failed, s(1)), None));
        assert_eq!(split.see(0, success, s(1)), None);
    }
    (0..2).for_each(|_| assert_eq!(split.see(0, Failed, s(1)), None));
    assert_eq!(split.see(0, OK, s(1)), None);
    assert!(split.see(0, Failed, s(1)).is_some(), "an answer says nothing of connections");
    let gateway = Watch::new(2, Outliers { consecutive_gateway: 2, consecutive_5xx: 0, ..outliers() });
    for outcome in [GATEWAY, BAD, GATEWAY, BAD, GATEWAY] {
        assert_eq!(gateway.see(0, outcome, s(1)), None, "another 5xx is no gateway error");
    }
}

#[test]
fn an_endpoint_comes_back_with_the_end_of_an_interval() {
    let watch = Watch::new(2, outliers());
    let ejection = (0..5).find_map(|_| watch.see(0, BAD, s(3))).unwrap();
    assert_eq!(ejection, Ejection { cause: Cause::Consecutive5xx, time: s(30) });
    assert_eq!(watch.ejected(s(3)), [0], "at once");
    assert_eq!(watch.ejected(s(33)), [0], "the time is over, the interval is not");
    assert_eq!(watch.ejected(s(39)), [0]);
    assert_eq!(watch.ejected(s(40)), [0; 0]);
    assert!(!watch.detector.may_have_ejected());
}

#[test]
fn ejections_take_longer_each_time_and_shorter_after_healthy_intervals() {
    let watch = Watch::new(2, outliers());
    let mut at = s(0);
    let mut eject = |wait: u64| {
        at += s(wait);
        watch.ejected(at);
        (0..5).find_map(|_| watch.see(0, BAD, at)).unwrap().time
    };
    assert_eq!(eject(0), s(30)); // until 30
    assert_eq!(eject(30), s(60)); // until 90
    assert_eq!(eject(60), s(90)); // until 180
    assert_eq!(eject(90 + 20), s(60), "two healthy intervals");
    assert_eq!(eject(60 + 600), s(30), "many more than it was ejected");
    let times: Vec<u64> = (0..14).map(|n| eject(if n == 0 { 30 } else { 300 }).as_secs()).collect();
    assert!(times.iter().all(|time| *time <= 300), "{times:?}");
    let long = Watch::new(2, Outliers { base_ejection: s(400), ..outliers() });
    assert_eq!((0..5).find_map(|_| long.see(0, BAD, s(1))).unwrap().time, s(400));
}

#[test]
fn a_long_silence_is_one_step() {
    let watch = Watch::new(2, Outliers { interval: Duration::from_nanos(1), ..outliers() });
    assert!(watch.after(0, BAD, s(1)).is_some());
    assert_eq!(watch.ejected(s(30)), [0]);
    assert_eq!(watch.ejected(s(365 * 24 * 3600)), [0; 0]);
}

#[test]
fn intervals_may_change_while_an_endpoint_is_left_alone() {
    let mut watch = Watch::new(2, Outliers { interval: Duration::from_millis(10), ..outliers() });
    assert!(watch.after(0, BAD, s(3600)).is_some());
    assert_eq!(watch.ejected(s(3601)), [0]);
    watch.outliers.interval = s(10);
    assert_eq!(watch.ejected(s(3629)), [0]);
    assert_eq!(watch.ejected(s(3630)), [0; 0], "many short intervals are not as many long ones");
}

/// Envoy's bound is inclusive; where nothing is said one may always go while another is healthy.
#[test]
fn no_more_are_ejected_than_may_be() {
    for (hosts, percent, want) in [
        (10, Some(30), 3),
        (10, Some(10), 1),
        (9, Some(10), 0),
        (2, Some(50), 1),
        (1, Some(50), 0),
        (1, Some(100), 1),
        (3, Some(100), 3),
        (3, Some(0), 0),
        (1, None, 0),
        (2, None, 1),
        (9, None, 1),
        (20, None, 2),
    ] {
        let watch = Watch::new(hosts, Outliers { max_ejection_percent: percent, ..outliers() });
        (0..hosts).for_each(|host| {
            watch.after(host, BAD, s(1));
        });
        assert_eq!(watch.ejected(s(1)).len(), want, "{percent:?} of {hosts}");
    }
}

#[test]
fn one_that_may_not_go_is_counted_anew() {
    let watch = Watch::new(2, Outliers { max_ejection_percent: Some(50), ..outliers() });
    assert!(watch.after(0, BAD, s(1)).is_some());
    (0..7).for_each(|_| assert_eq!(watch.see(1, BAD, s(1)), None));
    assert_eq!(watch.ejected(s(40)), [0; 0]);
    assert_eq!(watch.after(1, BAD, s(40)), Some((3, Cause::Consecutive5xx)));
    assert_eq!(watch.see(1, BAD, s(41)), None, "one that is ejected is not ejected again");
}

#[test]
fn a_part_of_failures_ejects_at_the_end_of_the_interval() {
    let percent = Outliers { consecutive_5xx: 0, failure_percent: Some(50), ..outliers() };
    let watch = Watch::new(3, percent.clone());
    for at in 0..10 {
        watch.see(0, if at % 2 == 0 { BAD } else { OK }, s(1));
        watch.see(1, if at % 3 == 0 { Failed } else { OK }, s(1));
        watch.see(2, if at < 9 { BAD } else { Connected }, s(1));
    }
    assert_eq!(watch.ejected(s(9)), [0; 0]);
    assert_eq!(watch.ejected(s(10)), [0], "4 of 10 are few, 9 answers are too few");
    (0..9).for_each(|_| {
        watch.see(2, BAD, s(11));
    });
    assert_eq!(watch.ejected(s(20)), [0], "each interval counts for itself");
    let off = Watch::new(3, Outliers { failure_percent: None, ..percent });
    (0..20).for_each(|_| {
        off.see(0, BAD, s(1));
    });
    assert_eq!(off.ejected(s(10)), [0; 0]);
}

proptest! {
    /// Whatever happens in whatever order, ejection stays within its percentage.
    #[test]
    fn ejection_is_never_above_its_percentage(
        hosts in 1_usize..12,
        percent in prop::option::of(0_u32..=100),
        events in prop::collection::vec((0_usize..12, 0_u8..4, 0_u64..15), 0..200),
    ) {
        let outliers = Outliers {
            max_ejection_percent: percent,
            consecutive_5xx: 2,
            failure_percent: Some(60),
            ..outliers()
        };
        let watch = Watch::new(hosts, outliers);
        let mut at = s(0);
        for (host, outcome, wait) in events {
            at += s(wait);
            let outcome = [BAD, GATEWAY, Failed, OK][usize::from(outcome)];
            watch.see(host % hosts, outcome, at);
            let ejected = watch.hosts.iter().filter(|host| host.is_ejected()).count();
            let most = hosts * percent.unwrap_or(10) as usize / 100;
            let most = if percent.is_none() && hosts > 1 { most.max(1) } else { most };
            prop_assert!(ejected <= most, "{ejected} of {hosts}, at most {most}");
            prop_assert_eq!(watch.detector.may_have_ejected(), ejected > 0);
        }
    }
}
