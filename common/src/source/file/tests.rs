//! Real directories and real inotify; every wait is a bounded poll of what is published.

use std::cell::RefCell;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use super::*;

/// A directory of this test, removed afterwards.
struct Temp(PathBuf);

impl Temp {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("culvert-source-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn pod(name: &str) -> String {
    format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, status: {{podIP: 10.0.0.1}}}}")
}

/// Waits for `done`, a little longer than the slowest way to see a change.
async fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Names of the published pods.
fn names(state: &State) -> Vec<String> {
    let mut names: Vec<String> = state.snapshot().workloads().map(|w| w.name.to_string()).collect();
    names.sort();
    names
}

/// Runs `steps` while the directory is watched.
async fn watched<F: Future<Output = ()>>(
    dir: &Path,
    steps: impl FnOnce(Arc<State>, Outcomes) -> F,
) -> Vec<ReloadOutcome> {
    let state = State::new();
    let outcomes = Outcomes::default();
    let sink = Arc::clone(&outcomes.0);
    let watch =
        watch(FileSource::new(dir.to_owned(), Settings::default()), Arc::clone(&state), move |outcome| {
            sink.borrow_mut().push(outcome);
        });
    tokio::select! {
        () = watch => unreachable!("watching never ends"),
        () = steps(state, outcomes.clone()) => {}
    }
    outcomes.all()
}

#[derive(Clone, Default)]
#[allow(clippy::arc_with_non_send_sync, reason = "one thread")]
struct Outcomes(Arc<RefCell<Vec<ReloadOutcome>>>);

impl Outcomes {
    fn all(&self) -> Vec<ReloadOutcome> {
        self.0.borrow().clone()
    }
}

fn published(revision: u64) -> ReloadOutcome {
    ReloadOutcome::Published { revision, warnings: 0 }
}

#[tokio::test]
async fn changes_are_published_and_bad_ones_leave_the_last_good_state() {
    let temp = Temp::new();
    temp.write("a.yaml", &pod("one"));
    let outcomes = watched(&temp.0, |state, outcomes| {
        let temp = &temp;
        async move {
            until("the first state", || names(&state) == ["one"]).await;
            temp.write("a.yaml", &pod("two"));
            until("a changed file", || names(&state) == ["two"]).await;
            temp.write("a.yaml", "kind: [");
            until("a refusal", || outcomes.all().len() == 3).await;
            assert_eq!((names(&state), state.snapshot().revision), (vec!["two".into()], 2));
            temp.write("a.yaml", &pod("two"));
            until("good again", || outcomes.all().len() == 4).await;
            assert_eq!(state.snapshot().revision, 2, "what is in force is not published again");
            temp.write("b.json", &pod("three").replace("10.0.0.1", "10.0.0.2").replace("kind", "\"kind\""));
            until("a new file", || names(&state) == ["three", "two"]).await;
            fs::remove_file(temp.0.join("a.yaml")).unwrap();
            until("a file less", || names(&state) == ["three"]).await;
        }
    })
    .await;
    let refused = ReloadOutcome::Refused { problems: 1 };
    assert_eq!(outcomes, [published(1), published(2), refused, published(2), published(3), published(4)]);
}

#[test]
fn what_says_the_same_as_before_is_neither_published_nor_reported_again() {
    let temp = Temp::new();
    let mut source = FileSource::new(temp.0.clone(), Settings::default());
    let state = State::default();
    let mut reload = || source.reload(&state);
    temp.write("a.yaml", &pod("one"));
    assert_eq!(reload(), Some(published(1)));
    temp.write("a.yaml", &pod("one"));
    temp.write("b.txt", "not ours");
    temp.write(".c.yaml", "nor ours: [");
    assert_eq!(reload(), None);
    temp.write("a.yaml", "kind: [");
    assert_eq!(reload(), Some(ReloadOutcome::Refused { problems: 1 }));
    temp.write("a.yaml", "kind: [");
    assert_eq!(reload(), None);
    temp.write("a.yaml", &pod("one"));
    assert_eq!(reload(), Some(published(1)), "in force all the time");
    assert_eq!(reload(), None);
}

#[tokio::test]
async fn the_links_of_a_config_map_are_followed_when_they_swap() {
    let temp = Temp::new();
    let version = |name: &str, text: &str| {
        fs::create_dir(temp.0.join(name)).unwrap();
        fs::write(temp.0.join(name).join("a.yaml"), text).unwrap();
        symlink(name, temp.0.join("..data_tmp")).unwrap();
        fs::rename(temp.0.join("..data_tmp"), temp.0.join("..data")).unwrap();
    };
    version("..2024_1", &pod("one"));
    symlink("..data/a.yaml", temp.0.join("a.yaml")).unwrap();
    watched(&temp.0, |state, _| async move {
        until("the first version", || names(&state) == ["one"]).await;
        let start = Instant::now();
        version("..2024_2", &pod("two"));
        until("the second version", || names(&state) == ["two"]).await;
        assert!(start.elapsed() < RESCAN, "by event, not by chance");
    })
    .await;
}

#[tokio::test]
async fn a_directory_that_goes_away_and_comes_back() {
    let temp = Temp::new();
    let dir = temp.0.join("conf");
    fs::create_dir_all(dir.join("below")).unwrap();
    fs::write(dir.join("below/a.yml"), pod("one")).unwrap();
    let (dir, away) = (&dir, temp.0.join("away"));
    watched(dir, |state, outcomes| async move {
        until("a file in a directory below", || names(&state) == ["one"]).await;
        fs::rename(dir, &away).unwrap();
        until("a refusal", || outcomes.all().len() == 2).await;
        assert_eq!(names(&state), ["one"], "the last good state");
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("a.yaml"), pod("two")).unwrap();
        until("the new directory", || names(&state) == ["two"]).await;
    })
    .await;
}

#[test]
fn a_directory_is_loaded_once_or_refused_with_all_problems() {
    let temp = Temp::new();
    temp.write("a.yaml", &pod("one"));
    assert_eq!(load(&temp.0, &Settings::default()).unwrap().model.workloads.len(), 1);
    temp.write("b.yaml", "kind: [");
    fs::write(temp.0.join("c.yaml"), b"a: 1\nb: \xff").unwrap();
    let error = load(&temp.0, &Settings::default()).unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 3, "{error}");
    assert_eq!(lines[0], "2 problem(s) in the configuration:");
    assert!(
        lines[1].contains("c.yaml:2: bytes that are no UTF-8; allowed: YAML or JSON in UTF-8"),
        "{error}"
    );
    assert!(lines[2].contains("b.yaml:") && lines[2].contains("no YAML"), "{error}");
}

#[test]
fn what_cannot_be_read_is_refused_and_nothing_hangs() {
    let temp = Temp::new();
    let none = load(&temp.0.join("none"), &Settings::default()).unwrap_err();
    assert!(matches!(none, LoadError::Io { .. }), "{none}");
    nix::unistd::mkfifo(&temp.0.join("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(load(&temp.0, &Settings::default()).is_ok(), "a pipe is no file");
    symlink("nowhere.yaml", temp.0.join("dangling.yaml")).unwrap();
    let dangling = load(&temp.0, &Settings::default()).unwrap_err();
    assert!(matches!(dangling, LoadError::Io { .. }), "{dangling}");
    fs::remove_file(temp.0.join("dangling.yaml")).unwrap();
    symlink(".", temp.0.join("loop")).unwrap();
    let deep = load(&temp.0, &Settings::default()).unwrap_err();
    assert!(
        deep.to_string()
            .ends_with("holds directories deeper than 8; name a directory with configuration only")
    );
    fs::remove_file(temp.0.join("loop")).unwrap();
    let huge = fs::File::create(temp.0.join("huge.yaml")).unwrap();
    huge.set_len(BYTES_MAX + 1).unwrap();
    let huge = load(&temp.0, &Settings::default()).unwrap_err();
    assert!(huge.to_string().contains("holds more than 32 MiB of text"), "{huge}");
}

#[test]
fn what_was_read_at_the_start_is_published_if_it_is_still_there() {
    let temp = Temp::new();
    let open = || FileSource::open(temp.0.clone(), Settings::default());
    temp.write("a.yaml", "kind: [");
    assert!(matches!(open(), Err(LoadError::Problems(problems)) if problems.len() == 1));
    temp.write("a.yaml", &pod("one"));
    let (mut same, mut changed) = (open().unwrap(), open().unwrap());
    let state = State::default();
    assert_eq!(same.reload(&state), Some(published(1)));
    assert_eq!(names(&state), ["one"]);
    temp.write("a.yaml", &pod("two"));
    let state = State::default();
    assert_eq!(changed.reload(&state), Some(published(1)));
    assert_eq!(names(&state), ["two"]);
}

const GATEWAY: &str = "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: wp, namespace: shop}, spec: \
                       {gatewayClassName: culvert-waypoint}}";

#[test]
fn a_waypoint_that_was_ready_stays_bound_over_a_restart() {
    let (temp, state_dir) = (Temp::new(), Temp::new());
    let instance = |ready: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: wp-0, namespace: shop, labels: \
             {{gateway.networking.k8s.io/gateway-name: wp}}}}, status: {{podIP: 10.0.0.9, conditions: [{{type: Ready, status: \
             '{ready}'}}]}}}}"
        )
    };
    let service = "{apiVersion: v1, kind: Service, metadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint: wp}}, \
                   spec: {ports: [{port: 80}]}}";
    let open = || {
        let kept = Some(Kept::new(state_dir.0.clone()));
        FileSource::open_keeping(temp.0.clone(), Settings::default(), kept).unwrap()
    };
    let is_bound = |state: &State| state.snapshot().services().any(|service| service.waypoint.is_some());
    temp.write("mesh.yaml", &[GATEWAY, "\n---\n", service].concat());
    temp.write("pod.yaml", &instance("False"));
    let (mut source, state) = (open(), State::default());
    source.reload(&state);
    assert!(!is_bound(&state), "it was never ready");
    temp.write("pod.yaml", &instance("True"));
    source.reload(&state);
    assert!(is_bound(&state));
    temp.write("pod.yaml", &instance("False"));
    source.reload(&state);
    assert!(is_bound(&state), "it was ready");
    let (mut source, state) = (open(), State::default());
    source.reload(&state);
    assert!(is_bound(&state), "and that is known after a restart");
    temp.write("mesh.yaml", service);
    source.reload(&state);
    temp.write("mesh.yaml", &[GATEWAY, "\n---\n", service].concat());
    source.reload(&state);
    assert!(!is_bound(&state), "a new Gateway of the name is another one");
}
