use super::*;
use crate::identity::fixtures::{TempPath, TestClock, embedded, id, shop};
use crate::task::Scope;

/// A cache over an embedded CA, whose clock the tests set wrong when the CA shall fail.
struct World {
    certs: Arc<Certs>,
    clock: Arc<TestClock>,
    ca_clock: Arc<TestClock>,
    scope: Scope,
    _dir: TempPath,
}

const CENTURY: i64 = 100 * 365 * 86_400;
const LIMIT: Duration = Duration::from_secs(5);

impl World {
    /// Needs paused time.
    fn new() -> Self {
        let (dir, clock, ca_clock) = (TempPath::new(), TestClock::new(), TestClock::new());
        let certs = Certs::new(Ca::Embedded(embedded(&dir, ca_clock.clone())), clock.clone());
        Self { certs, clock, ca_clock, scope: Scope::new(), _dir: dir }
    }

    fn running() -> Self {
        let world = Self::new();
        world.scope.spawn(world.certs.clone().run());
        world
    }

    fn want(&self, ids: &[SpiffeId]) {
        self.certs.want(ids.iter().cloned().collect());
    }

    fn ca_fails(&self, fails: bool) {
        self.ca_clock.set_ahead(if fails { CENTURY } else { 0 });
    }
}

async fn seconds(seconds: u64) {
    sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn an_identity_is_fetched_on_demand() {
    let world = World::running();
    let cert = world.certs.wait(&shop("cart"), LIMIT).await.unwrap();
    assert_eq!(cert.identity, shop("cart"));
    assert!(Arc::ptr_eq(&cert, &world.certs.current(&shop("cart")).unwrap()));
    assert!(Arc::ptr_eq(&cert, &world.certs.wait(&shop("cart"), LIMIT).await.unwrap()));
}

#[tokio::test(start_paused = true)]
async fn wanted_identities_are_fetched_ahead_and_others_forgotten() {
    let world = World::running();
    assert!(world.certs.all_ready().is_ok(), "nothing is wanted yet");
    let all: Vec<_> = (0..100).map(|i| shop(&format!("s{i}"))).collect();
    world.want(&all);
    assert_eq!(world.certs.all_ready().unwrap_err().len(), 100);
    seconds(1).await;
    assert!(world.certs.all_ready().is_ok());
    assert_eq!(world.certs.status().len(), 100);
    assert!(world.certs.status().iter().all(|s| s.state == CertState::Available && s.wanted));
    world.want(&all[..1]);
    assert_eq!(world.certs.status().len(), 1);
    assert!(world.certs.current(&all[1]).is_none());
}

#[tokio::test(start_paused = true)]
async fn renewal_comes_at_about_half_of_the_life() {
    let world = World::running();
    world.want(&[shop("cart")]);
    let mut cert = world.certs.wait(&shop("cart"), LIMIT).await.unwrap();
    for _ in 0..5 {
        let since = Instant::now();
        let next = loop {
            seconds(1).await;
            let next = world.certs.current(&shop("cart")).expect("never without a certificate");
            if !Arc::ptr_eq(&cert, &next) {
                break next;
            }
        };
        // Certificates of 1,000 s; one second of coarseness here, and whole seconds inside them.
        let after = since.elapsed().as_secs();
        assert!((448..=552).contains(&after), "{after}");
        assert!(next.not_after > cert.not_after);
        cert = next;
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_good_certificate_serves_until_it_expires_while_the_ca_fails() {
    let world = World::running();
    world.want(&[shop("cart")]);
    let cert = world.certs.wait(&shop("cart"), LIMIT).await.unwrap();
    world.ca_fails(true);
    seconds(990).await;
    assert!(Arc::ptr_eq(&cert, &world.certs.wait(&shop("cart"), LIMIT).await.unwrap()));
    let status = world.certs.status().remove(0);
    assert_eq!(status.state, CertState::Available);
    assert!(status.error.unwrap().contains("not valid now"));
    seconds(11).await;
    assert!(world.certs.current(&shop("cart")).is_none());
    let began = Instant::now();
    let error = world.certs.wait(&shop("cart"), LIMIT).await.unwrap_err().to_string();
    assert_eq!(began.elapsed(), Duration::ZERO, "refused at once");
    assert!(
        error.contains("no certificate of spiffe://cluster.local/ns/shop/sa/cart: the root in"),
        "{error}"
    );
    assert!(world.certs.all_ready().is_ok(), "it has served");
    world.ca_fails(false);
    seconds(181).await;
    assert_eq!(world.certs.status()[0].state, CertState::Available);
    assert!(world.certs.current(&shop("cart")).unwrap().not_after > cert.not_after);
}

#[tokio::test(start_paused = true)]
async fn a_first_failure_is_told_with_its_reason_and_retried() {
    let world = World::running();
    world.ca_fails(true);
    world.want(&[shop("cart")]);
    let error = world.certs.wait(&shop("cart"), LIMIT).await.unwrap_err();
    assert!(matches!(error, IdentityError::Unavailable { .. }), "{error}");
    let (missing, reason) = world.certs.all_ready().unwrap_err().remove(0);
    assert!(missing == shop("cart") && reason.contains("not valid now"), "{reason}");
    world.ca_fails(false);
    seconds(10).await;
    assert!(world.certs.current(&shop("cart")).is_some());
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_the_ca_refuses_is_unavailable() {
    let world = World::running();
    let error = world.certs.wait(&id("spiffe://elsewhere/ns/shop/sa/cart"), LIMIT).await.unwrap_err();
    assert!(error.to_string().contains("not in trust domain cluster.local"), "{error}");
    seconds(10).await;
    assert!(world.certs.status().is_empty(), "nobody wants it, so it is not asked for for ever");
}

#[tokio::test(start_paused = true)]
async fn waiting_has_a_limit_and_leaves_nothing_behind() {
    let world = World::new();
    let began = Instant::now();
    let error = world.certs.wait(&shop("cart"), LIMIT).await.unwrap_err();
    assert!(matches!(error, IdentityError::Timeout { limit: LIMIT, .. }), "{error}");
    assert_eq!(began.elapsed(), LIMIT);
    assert!(timeout(Duration::from_secs(1), world.certs.wait(&shop("cart"), LIMIT)).await.is_err());
    world.want(&[]);
    assert!(world.certs.status().is_empty(), "a dropped wait holds nothing");
    world.scope.spawn(world.certs.clone().run());
    world.certs.wait(&shop("cart"), LIMIT).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn many_waiters_share_one_certificate() {
    let world = World::running();
    let got = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..50 {
        let (certs, got) = (world.certs.clone(), got.clone());
        world.scope.spawn(async move {
            let cert = certs.wait(&shop("cart"), LIMIT).await.unwrap();
            got.lock().unwrap().push(cert);
        });
    }
    seconds(1).await;
    let got = got.lock().unwrap();
    assert!(got.len() == 50 && got.windows(2).all(|pair| Arc::ptr_eq(&pair[0], &pair[1])));
}

#[tokio::test(start_paused = true)]
async fn after_a_jump_of_the_clock_a_new_certificate_comes_on_demand() {
    let world = World::running();
    world.want(&[shop("cart")]);
    let cert = world.certs.wait(&shop("cart"), LIMIT).await.unwrap();
    // A suspended machine: the wall clock went on, the timers did not.
    world.clock.set_ahead(5_000);
    world.ca_clock.set_ahead(5_000);
    assert!(world.certs.current(&shop("cart")).is_none());
    let began = Instant::now();
    let next = world.certs.wait(&shop("cart"), LIMIT).await.unwrap();
    assert!(next.not_after > cert.not_after);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_new_renewal_task_goes_on_where_the_last_was_dropped() {
    let world = World::new();
    world.want(&[shop("cart")]);
    let first = Scope::new();
    first.spawn(world.certs.clone().run());
    first.cut();
    world.scope.spawn(world.certs.clone().run());
    world.certs.wait(&shop("cart"), LIMIT).await.unwrap();
}

#[test]
fn random_stays_in_its_range() {
    for _ in 0..1_000 {
        assert!((0.0..1.0).contains(&random()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_root_gives_new_certificates_and_says_so() {
    let world = World::running();
    let mut trust = world.certs.trust_changed();
    world.want(&[shop("cart")]);
    let old = world.certs.wait(&shop("cart"), LIMIT).await.unwrap();
    seconds(10).await;
    assert!(!trust.has_changed().unwrap());
    assert!(Arc::ptr_eq(&old, &world.certs.current(&shop("cart")).unwrap()), "looking changes nothing");
    for (name, text) in crate::identity::fixtures::root_files("root-2", -30) {
        crate::identity::fixtures::put(&world._dir, &name, &text);
    }
    trust.changed().await.unwrap();
    let both = world.certs.current(&shop("cart")).unwrap();
    assert!(both.trust().has_signer_of(old.trust()), "the new root is trusted, and does not sign yet");
    assert!(both.trust() != old.trust());
    trust.changed().await.unwrap();
    let new = world.certs.current(&shop("cart")).unwrap();
    assert!(!new.trust().has_signer_of(old.trust()));
    // A chain is judged by who trusts it, at both ends and long after its end.
    let chain = |of: &WorkloadCert| {
        let certificates: Vec<_> = of.chain().into_iter().map(|c| c.der.into()).collect();
        super::super::Chain::of(Some(&certificates))
    };
    for role in [super::super::Role::Client, super::super::Role::Server] {
        assert!(new.trust().verify(&chain(&old), role).is_ok());
        assert!(old.trust().verify(&chain(&new), role).is_err());
    }
    world.clock.set_ahead(CENTURY);
    assert!(new.trust().verify(&chain(&old), super::super::Role::Server).is_ok());
}
