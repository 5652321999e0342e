use proptest::prelude::*;

use super::*;
use crate::identity::Acceptance;
use crate::identity::fixtures::{Leaf, Pki, Standing, at, shop};

/// A certificate of `id` that ends `ttl` seconds after the tests' present.
fn cert(pki: &Pki, id: &SpiffeId, ttl: i64) -> WorkloadCert {
    let leaf = Leaf { validity: (-60, ttl), ..Leaf::of(&id.to_string()) };
    WorkloadCert::new(id, &pki.issued(&pki.sign(&leaf)), Arc::new(Standing), &Acceptance::default()).unwrap()
}

fn no(text: &str) -> Failed {
    Failed { text: text.to_owned(), is_answer: true }
}

/// A moment so many seconds after the tests' present, on both clocks.
fn moment(start: Instant, seconds: u64) -> Moment {
    Moment { wall: at(i64::try_from(seconds).unwrap()), steady: start + Duration::from_secs(seconds) }
}

fn set(ids: &[SpiffeId]) -> HashSet<SpiffeId> {
    ids.iter().cloned().collect()
}

#[test]
fn at_most_eight_are_fetched_at_once_and_each_only_once() {
    let (mut schedule, now) = (Schedule::default(), moment(Instant::now(), 0));
    let all: Vec<_> = (0..20).map(|i| shop(&format!("s{i}"))).collect();
    schedule.want(set(&all));
    schedule.want(set(&all));
    let mut seen = HashSet::new();
    for _ in 0..PARALLEL_MAX {
        assert!(seen.insert(schedule.start_next(now).unwrap()));
    }
    assert_eq!(schedule.start_next(now), None);
    let one = seen.iter().next().unwrap().clone();
    schedule.finish(&one, Err(no("no")), now, 0.5);
    assert!(seen.insert(schedule.start_next(now).unwrap()), "one ended, another begins");
    assert_eq!(schedule.start_next(now), None);
}

#[test]
fn those_who_wait_come_first_then_the_new_then_renewals() {
    let (mut schedule, start, pki) = (Schedule::default(), Instant::now(), Pki::new("root"));
    let (old, new, asked) = (shop("old"), shop("new"), shop("asked"));
    schedule.want(set(std::slice::from_ref(&old)));
    assert_eq!(schedule.start_next(moment(start, 0)), Some(old.clone()));
    schedule.finish(&old, Ok(cert(&pki, &old, 100)), moment(start, 0), 0.5);
    let late = moment(start, 60);
    schedule.want(set(&[old.clone(), new.clone()]));
    let Look::Pending(_waiting) = schedule.ask(&asked, late.wall) else { panic!("nothing is known of it") };
    let order: Vec<_> = std::iter::from_fn(|| schedule.start_next(late)).collect();
    assert_eq!(order, [asked, new, old]);
}

#[test]
fn waiters_for_one_identity_share_its_fetch() {
    let (mut schedule, now, id) = (Schedule::default(), moment(Instant::now(), 0), shop("cart"));
    let Look::Pending(mut one) = schedule.ask(&id, now.wall) else { panic!("unknown") };
    let Look::Pending(mut two) = schedule.ask(&id, now.wall) else { panic!("unknown") };
    assert_eq!(schedule.start_next(now), Some(id.clone()));
    assert_eq!(schedule.start_next(now), None);
    schedule.finish(&id, Err(no("denied")), now, 0.5);
    assert!(one.has_changed().unwrap() && two.has_changed().unwrap());
    one.mark_unchanged();
    two.mark_unchanged();
    assert!(matches!(schedule.ask(&id, now.wall), Look::Pending(_)), "the next attempt may succeed");
    assert_eq!(schedule.reason(&id).unwrap().text, "denied");
}

#[test]
fn who_is_held_for_a_first_certificate_is_tried_for_often() {
    let (mut schedule, start, pki) = (Schedule::default(), Instant::now(), Pki::new("root"));
    let id = shop("cart");
    schedule.want(set(std::slice::from_ref(&id)));
    let mut now = moment(start, 0);
    for _ in 0..10 {
        schedule.start_next(now).unwrap();
        schedule.finish(&id, Err(no("down")), now, 0.5);
        now.steady += schedule.due_in(now).unwrap();
    }
    schedule.start_next(now).unwrap();
    schedule.finish(&id, Err(no("down")), now, 0.5);
    assert_eq!(schedule.due_in(now), Some(Duration::from_secs(150)), "nobody waits");
    let Look::Pending(waiting) = schedule.ask(&id, now.wall) else { panic!("held") };
    assert_eq!(schedule.due_in(now), Some(Duration::from_secs(2)));
    now.steady += Duration::from_secs(2);
    assert_eq!(schedule.start_next(now), Some(id.clone()));
    schedule.finish(&id, Ok(cert(&pki, &id, 100)), now, 0.5);
    drop(waiting);
    // One that has served and expired is refused at once: who waits for it learns nothing by it.
    let late = Moment { wall: at(101), ..now };
    schedule.start_next(late).unwrap();
    schedule.finish(&id, Err(no("down")), late, 0.5);
    assert!(matches!(schedule.ask(&id, late.wall), Look::Failed(failed) if failed.text == "down"));
}

#[test]
fn failures_are_retried_ever_more_slowly_and_a_success_forgets_them() {
    let (mut schedule, start, pki) = (Schedule::default(), Instant::now(), Pki::new("root"));
    let id = shop("cart");
    schedule.want(set(std::slice::from_ref(&id)));
    let mut now = moment(start, 0);
    for want in [1, 2, 4, 8, 16, 32, 64, 128, 150, 150, 150] {
        assert_eq!(schedule.start_next(now), Some(id.clone()));
        schedule.finish(&id, Err(no("down")), now, 0.5);
        assert_eq!(schedule.due_in(now), Some(Duration::from_secs(want)));
        assert_eq!(schedule.start_next(now), None, "not before the pause is over");
        // The pauses are measured on the steady clock: the wall clock stands still meanwhile.
        now.steady += Duration::from_secs(want);
    }
    assert_eq!(schedule.start_next(now), Some(id.clone()));
    schedule.finish(&id, Ok(cert(&pki, &id, 1_000)), now, 0.5);
    assert!(schedule.status(now.wall)[0].error.is_none());
    now.wall = at(600);
    assert_eq!(schedule.start_next(now), Some(id.clone()));
    schedule.finish(&id, Err(no("down")), now, 0.5);
    assert_eq!(schedule.due_in(now), Some(Duration::from_secs(1)));
}

#[test]
fn a_ca_that_is_away_is_asked_more_often_and_one_that_is_back_serves_all() {
    let (mut schedule, start, pki) = (Schedule::default(), Instant::now(), Pki::new("root"));
    let (a, b, refused) = (shop("a"), shop("b"), shop("refused"));
    schedule.want(set(&[a.clone(), b.clone(), refused.clone()]));
    let away = || Failed { text: "away".to_owned(), is_answer: false };
    let mut now = moment(start, 0);
    for _ in 0..10 {
        while let Some(id) = schedule.start_next(now) {
            let failed = if id == refused { no("denied") } else { away() };
            schedule.finish(&id, Err(failed), now, 0.5);
        }
        assert!(schedule.due_in(now).unwrap() <= Duration::from_secs(15));
        now.steady += Duration::from_secs(300);
    }
    while let Some(id) = schedule.start_next(now) {
        let failed = if id == refused { no("denied") } else { away() };
        schedule.finish(&id, Err(failed), now, 0.5);
    }
    now.steady += Duration::from_secs(15);
    let first = schedule.start_next(now).unwrap();
    let other = schedule.start_next(now).unwrap();
    schedule.finish(&other, Err(away()), now, 0.5);
    assert_eq!(schedule.start_next(now), None);
    schedule.finish(&first, Ok(cert(&pki, &first, 1_000)), now, 0.5);
    assert_eq!(schedule.start_next(now), Some(other), "at once");
    assert_eq!(schedule.start_next(now), None, "the one that was refused waits on");
}

#[test]
fn the_retry_comes_no_later_than_the_expiry_of_what_is_in_use() {
    let (mut schedule, start, pki) = (Schedule::default(), Instant::now(), Pki::new("root"));
    let id = shop("cart");
    schedule.want(set(std::slice::from_ref(&id)));
    schedule.start_next(moment(start, 0)).unwrap();
    schedule.finish(&id, Ok(cert(&pki, &id, 100)), moment(start, 0), 0.5);
    let mut now = moment(start, 50);
    for _ in 0..12 {
        assert_eq!(schedule.start_next(now), Some(id.clone()));
        schedule.finish(&id, Err(no("down")), now, 0.9);
        let pause = schedule.due_in(now).unwrap();
        if let Ok(left) = at(100).duration_since(now.wall) {
            assert!(left.is_zero() || pause <= left, "{pause:?} of {left:?}");
        }
        assert_eq!(schedule.current(&id, now.wall).is_some(), now.wall < at(100), "kept until it expires");
        now.wall += pause;
        now.steady += pause;
    }
    assert!(now.wall > at(100));
    assert_eq!(schedule.status(now.wall)[0].state, CertState::Unavailable);
}

#[test]
fn unwanted_identities_go_but_not_under_a_waiter() {
    let (mut schedule, start, pki) = (Schedule::default(), Instant::now(), Pki::new("root"));
    let now = moment(start, 0);
    let (gone, asked) = (shop("gone"), shop("asked"));
    schedule.want(set(std::slice::from_ref(&gone)));
    schedule.start_next(now).unwrap();
    let Look::Pending(waiting) = schedule.ask(&asked, now.wall) else { panic!("unknown") };
    schedule.want(HashSet::new());
    assert!(matches!(schedule.look(&gone, now.wall), Look::Unknown));
    schedule.finish(&gone, Ok(cert(&pki, &gone, 100)), now, 0.5);
    assert!(schedule.current(&gone, now.wall).is_none(), "an answer that nobody wants any more is dropped");
    assert_eq!(schedule.start_next(now), Some(asked.clone()));
    schedule.finish(&asked, Ok(cert(&pki, &asked, 100)), now, 0.5);
    drop(waiting);
    assert!(schedule.current(&asked, now.wall).is_some());
    assert_eq!(schedule.start_next(moment(start, 60)), None, "nobody wants a renewal");
    assert!(schedule.status(at(60)).is_empty());
}

#[test]
fn what_a_lost_task_fetched_is_fetched_again() {
    let (mut schedule, now, id) = (Schedule::default(), moment(Instant::now(), 0), shop("cart"));
    schedule.want(set(std::slice::from_ref(&id)));
    schedule.start_next(now).unwrap();
    assert_eq!(schedule.start_next(now), None);
    schedule.restart();
    assert_eq!(schedule.start_next(now), Some(id));
}

#[test]
fn readiness_names_those_that_never_had_a_certificate() {
    let (mut schedule, start, pki) = (Schedule::default(), Instant::now(), Pki::new("root"));
    let now = moment(start, 0);
    let (a, b) = (shop("a"), shop("b"));
    schedule.want(set(&[a.clone(), b.clone()]));
    schedule.ask(&shop("not-ours"), now.wall);
    let waiting = "waiting for the first certificate".to_owned();
    assert_eq!(schedule.not_ready(), [(a.clone(), waiting.clone()), (b.clone(), waiting)]);
    while schedule.start_next(now).is_some() {}
    schedule.finish(&a, Ok(cert(&pki, &a, 100)), now, 0.5);
    schedule.finish(&b, Err(no("denied")), now, 0.5);
    assert_eq!(schedule.not_ready(), [(b.clone(), "denied".to_owned())]);
    schedule.finish(&b, Ok(cert(&pki, &b, 100)), now, 0.5);
    assert!(schedule.not_ready().is_empty());
    // One that served once stays ready: an outage of the CA must not take a running node away.
    assert!(schedule.current(&a, at(100)).is_none() && schedule.not_ready().is_empty());
}

proptest! {
    /// Renewal lies in 45–55 % of the remaining life, and never so near that it would spin.
    #[test]
    fn renewal_is_early_and_jittered(life in 0_u64..100_000_000, random in 0.0_f64..1.0) {
        let at = renewal(at(0), at(0) + Duration::from_secs(life), random)
            .duration_since(at(0)).unwrap().as_secs_f64();
        let life = life as f64;
        prop_assert!(at >= 1.0);
        prop_assert!(at <= (0.55 * life + 1e-3).max(1.0) && at >= 0.45 * life - 1e-3, "{} of {}", at, life);
    }

    /// A pause lies within 20 % of its nominal length, whatever the number of failures.
    #[test]
    fn a_pause_is_jittered_and_bounded(failures in any::<u32>(), random in 0.0_f64..1.0) {
        let nominal = 2.0_f64.powi(i32::try_from(failures.min(30)).unwrap()).min(150.0);
        let pause = backoff(failures, random).as_secs_f64();
        prop_assert!(pause >= 0.8 * nominal - 1e-6 && pause <= 1.2 * nominal + 1e-6);
    }
}

#[test]
fn new_roots_make_everything_due_also_what_is_under_way() {
    let (mut schedule, now, pki) = (Schedule::default(), moment(Instant::now(), 0), Pki::new("root"));
    let (served, failed, running) = (shop("served"), shop("failed"), shop("running"));
    schedule.want(set(&[served.clone(), failed.clone(), running.clone()]));
    while schedule.start_next(now).is_some() {}
    assert!(!schedule.finish(&served, Ok(cert(&pki, &served, 1_000)), now, 0.5));
    assert!(!schedule.finish(&failed, Err(no("no")), now, 0.5));
    assert_eq!(schedule.start_next(now), None);
    schedule.reissue();
    let again = [schedule.start_next(now), schedule.start_next(now)];
    assert!(again.contains(&Some(served.clone())) && again.contains(&Some(failed)));
    assert_eq!(schedule.start_next(now), None, "one is still under way");
    // What it brings may have been issued before: it serves, and is fetched again.
    schedule.finish(&running, Ok(cert(&pki, &running, 1_000)), now, 0.5);
    assert!(schedule.current(&running, now.wall).is_some());
    assert_eq!(schedule.start_next(now), Some(running.clone()));
    assert!(!schedule.finish(&running, Ok(cert(&pki, &running, 1_000)), now, 0.5), "the same root");
    assert_eq!(schedule.start_next(now), None);
    let other = Pki::new("other");
    assert!(schedule.finish(&served, Ok(cert(&other, &served, 1_000)), now, 0.5), "another root");
}

#[test]
fn a_clock_that_jumps_renews_and_throws_nothing_away() {
    let pki = Pki::new("root");
    let id = shop("cart");
    for (to, due, serves) in [
        (1, false, true),
        (499, false, true),
        (600, true, true),    // forward, past the time of renewal
        (5_000, true, false), // forward, past the end
        (-59, false, true),   // back
        (-3_600, true, true), // back, before the start: others may refuse it
    ] {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        schedule.want(set(std::slice::from_ref(&id)));
        schedule.start_next(moment(start, 0));
        schedule.finish(&id, Ok(cert(&pki, &id, 1_000)), moment(start, 0), 0.5);
        let now = Moment { wall: at(to), steady: start + Duration::from_secs(1) };
        assert_eq!(schedule.current(&id, now.wall).is_some(), serves, "{to}");
        assert_eq!(schedule.start_next(now).is_some(), due, "{to}");
        assert_eq!(schedule.current(&id, now.wall).is_some(), serves, "{to}: while it is renewed");
    }
}
