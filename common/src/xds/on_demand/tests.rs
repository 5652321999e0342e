//! Questions and answers, without a server.

use prost::Message;

use super::*;
use crate::xds::proto::discovery::{DeltaDiscoveryResponse, Resource};

fn response(resources: &[(&str, &[&str])], removed: &[&str]) -> Response {
    let resource = |(name, aliases): &(&str, &[&str])| Resource {
        name: (*name).to_owned(),
        aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        ..Resource::default()
    };
    let message = DeltaDiscoveryResponse {
        resources: resources.iter().map(resource).collect(),
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    Response::read(message.encode_to_vec().into()).unwrap()
}

fn ask(interest: &mut Interest, name: &str, now: Instant) -> (Option<String>, oneshot::Receiver<bool>) {
    let (reply, answer) = oneshot::channel();
    (interest.ask(Ask { name: name.to_owned(), reply }, now), answer)
}

#[tokio::test]
async fn an_alias_wakes_whoever_asked_by_address_once_it_is_published() {
    let (mut interest, now) = (Interest::default(), Instant::now());
    let (subscribe, mut first) = ask(&mut interest, "net/10.0.0.1", now);
    assert_eq!(subscribe.as_deref(), Some("net/10.0.0.1"));
    let (subscribe, mut second) = ask(&mut interest, "net/10.0.0.1", now);
    assert_eq!(subscribe, None, "asked already");
    interest.answered(&response(&[("uid-1", &["net/10.0.0.1"])], &[]), |_| true);
    assert!(first.try_recv().is_err() && interest.has_answers(), "not before it is published");
    interest.tell();
    assert_eq!((first.try_recv(), second.try_recv()), (Ok(true), Ok(true)));
    let (subscribe, mut later) = ask(&mut interest, "net/10.0.0.1", now);
    interest.tell();
    assert_eq!((subscribe, later.try_recv()), (None, Ok(true)));
}

#[tokio::test]
async fn a_miss_is_told_and_remembered_for_a_while() {
    let (mut interest, now) = (Interest::default(), Instant::now());
    let (_, mut answer) = ask(&mut interest, "net/10.0.0.1", now);
    interest.answered(&response(&[], &["net/10.0.0.1", "unasked"]), |_| true);
    interest.tell();
    assert_eq!(answer.try_recv(), Ok(false));
    assert_eq!(interest.give_up(now), (vec![], vec![]));
    assert_eq!(interest.give_up(now + MISS).0, ["net/10.0.0.1"]);
    assert!(ask(&mut interest, "net/10.0.0.1", now).0.is_some(), "asked anew");
}

#[tokio::test]
async fn what_could_not_be_used_is_neither_there_nor_missing() {
    let (mut interest, now) = (Interest::default(), Instant::now());
    let (_, mut answer) = ask(&mut interest, "net/10.0.0.1", now);
    interest.answered(&response(&[("uid-1", &["net/10.0.0.1"])], &[]), |_| false);
    assert!(!interest.has_answers());
    assert!(answer.try_recv().is_err());
}

#[tokio::test]
async fn what_is_gone_is_asked_for_anew() {
    let (mut interest, now) = (Interest::default(), Instant::now());
    let (_, _answer) = ask(&mut interest, "net/10.0.0.1", now);
    interest.answered(&response(&[("uid-1", &["net/10.0.0.1"])], &[]), |_| true);
    interest.tell();
    let lost = interest.answered(&response(&[], &["uid-1"]), |_| true);
    assert_eq!(lost, ["net/10.0.0.1"]);
    assert!(ask(&mut interest, "net/10.0.0.1", now).0.is_some());
}

#[tokio::test]
async fn with_too_many_names_the_oldest_are_given_up_but_not_the_nodes_own_pods() {
    let (mut interest, now) = (Interest::default(), Instant::now());
    let own = "Kubernetes//Pod/shop/own";
    let mut answers = vec![ask(&mut interest, own, now).1];
    interest.answered(&response(&[(own, &[])], &[]), |_| true);
    for n in 0..NAMES_MAX + 1 {
        let (key, uid) = (format!("net/{n}"), format!("uid-{n}"));
        answers.push(ask(&mut interest, &key, now + Duration::from_millis(n as u64 + 1)).1);
        interest.answered(&response(&[(&uid, &[&key])], &[]), |_| true);
    }
    // Another name leads to the same resource as the first one.
    answers.push(ask(&mut interest, "shop/name", now + Duration::from_secs(60)).1);
    interest.answered(&response(&[("uid-0", &["shop/name"])], &[]), |_| true);
    let (names, behind) = interest.give_up(now + Duration::from_secs(60));
    assert_eq!(names, ["net/0", "net/1", "net/2"]);
    assert_eq!(behind, ["uid-1", "uid-2"]);
    assert!(interest.names().contains(&own.to_owned()));
}

#[tokio::test]
async fn names_that_nobody_has_do_not_pile_up() {
    let (mut interest, now) = (Interest::default(), Instant::now());
    let names: Vec<_> = (0..3 * NAMES_MAX).map(|n| format!("net/{n}")).collect();
    for (turn, batch) in (0..).zip(names.chunks(NAMES_SPARE)) {
        let batch: Vec<&str> = batch.iter().map(String::as_str).collect();
        for name in &batch {
            let _answer = ask(&mut interest, name, now + Duration::from_millis(turn));
        }
        interest.answered(&response(&[], &batch), |_| true);
        if interest.is_full() {
            assert_eq!(interest.give_up(now).0.len(), NAMES_SPARE);
        }
        assert!(interest.asked.len() <= NAMES_MAX);
    }
    let kept = interest.names();
    assert!(kept.contains(&names[names.len() - 1]) && !kept.contains(&names[0]), "the newest");
}

#[tokio::test]
async fn a_question_that_nobody_waits_for_is_given_up() {
    let (mut interest, now) = (Interest::default(), Instant::now());
    let (_, answer) = ask(&mut interest, "net/10.0.0.1", now);
    assert_eq!(interest.give_up(now).0.len(), 0);
    drop(answer);
    assert_eq!(interest.give_up(now).0, ["net/10.0.0.1"]);
}

#[tokio::test(start_paused = true)]
async fn a_time_out_is_no_miss() {
    let (on_demand, mut asks) = OnDemand::new();
    let limit = Duration::from_secs(2);
    assert_eq!(on_demand.address("net", "10.0.0.1".parse().unwrap(), limit).await, Lookup::TimedOut);
    assert_eq!(asks.try_recv().unwrap().name, "net/10.0.0.1");
    drop(asks);
    let key = ServiceKey { namespace: "a".into(), hostname: "b".into() };
    assert_eq!(on_demand.service(&key, limit).await, Lookup::TimedOut, "nobody is there to ask");
}

#[tokio::test]
async fn what_was_known_before_a_restart_is_asked_for_and_given_up_like_the_rest() {
    let (mut interest, now) = (Interest::default(), Instant::now());
    let before = (0..NAMES_MAX + 2).map(|n| (format!("uid-{n}"), format!("net/{n}")));
    interest.begin_with(before.chain([("shop/db".into(), "shop/db".into())]).collect(), now);
    assert_eq!(interest.names().len(), NAMES_MAX + 3);
    let (subscribe, mut answer) = ask(&mut interest, "net/7", now);
    interest.tell();
    assert_eq!((subscribe, answer.try_recv()), (None, Ok(true)));
    let (names, behind) = interest.give_up(now);
    assert_eq!((names.len(), behind.len()), (3, 3), "those beyond the limit");
    assert_eq!(interest.answered(&response(&[], &["uid-5"]), |_| false), ["net/5"], "to be asked for anew");
}
