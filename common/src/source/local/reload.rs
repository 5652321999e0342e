//! The file, read again when it changes.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::{LocalError, parse, read};
use crate::config::Stamp;
use crate::model::Model;
use crate::net::memory;
use crate::source::file::{ReloadOutcome, refused};
use crate::state::State;

/// Time between looks at the file: one look is one system call.
const LOOK: Duration = Duration::from_secs(1);
/// What was still being written is looked at again so soon.
const SETTLE: Duration = Duration::from_millis(100);

/// A file that was good, what it said, and what was seen of it last.
pub struct LocalSource {
    path: PathBuf,
    network: Arc<str>,
    seen: Option<Stamp>,
    /// Hash of the content in force and its revision, once it is published.
    in_force: Option<(u64, u64)>,
    /// Hash of the content, or of the error, that was reported last.
    reported: u64,
    first: Option<Model>,
}

impl LocalSource {
    /// Reads a file that is good now; [`watch`] publishes it.
    ///
    /// **Errors**: as [`super::load`].
    pub fn open(path: PathBuf, network: &str) -> Result<Self, LocalError> {
        let seen = Stamp::of(&path);
        let bytes = read(&path)?;
        let model = parse(&path.display().to_string(), &bytes, network)?;
        let reported = hash(&bytes);
        Ok(Self { path, network: network.into(), seen, in_force: None, reported, first: Some(model) })
    }

    fn publish(&mut self, model: Model, hash: u64, state: &State) -> ReloadOutcome {
        let revision = state.publish(model);
        tracing::info!(target: "state", revision, file = %self.path.display(), "local file in force");
        self.in_force = Some((hash, revision));
        ReloadOutcome::Published { revision, warnings: 0 }
    }

    /// Reads the file and publishes it if it is good; none if it says what it said before.
    fn reload(&mut self, state: &State) -> Option<ReloadOutcome> {
        let text = read(&self.path);
        let content = match &text {
            Ok(bytes) => hash(bytes),
            Err(error) => hash(&error.to_string()),
        };
        if std::mem::replace(&mut self.reported, content) == content {
            return None;
        }
        if let Some((_, revision)) = self.in_force.filter(|(of, _)| *of == content) {
            tracing::info!(target: "state", revision, "local file is again what is in force");
            state.confirm();
            return Some(ReloadOutcome::Published { revision, warnings: 0 });
        }
        let shown = self.path.display().to_string();
        Some(match text.and_then(|bytes| parse(&shown, &bytes, &self.network)) {
            Ok(model) => self.publish(model, content, state),
            Err(error) => {
                state.mark_stale();
                refuse(&error)
            }
        })
    }
}

/// Publishes what the file says into `state`, now and whenever it changes, until dropped. Logs each problem once, and
/// tells `on_result` of each new content, good or bad. Cancel-safe.
pub async fn watch(mut source: LocalSource, state: Arc<State>, on_result: impl Fn(ReloadOutcome)) {
    if let Some(model) = source.first.take() {
        let content = source.reported;
        on_result(source.publish(model, content, &state));
        memory::give_back();
    }
    loop {
        sleep(LOOK).await;
        let now = Stamp::of(&source.path);
        if now == source.seen {
            continue;
        }
        source.seen = now;
        sleep(SETTLE).await;
        if Stamp::of(&source.path) == source.seen
            && let Some(outcome) = source.reload(&state)
        {
            on_result(outcome);
            memory::give_back(); // reading takes several times what it leaves
        }
    }
}

fn refuse(error: &LocalError) -> ReloadOutcome {
    let LocalError::Problems(problems) = error else {
        tracing::error!(target: "state", "{error}");
        return ReloadOutcome::Refused { problems: 1 };
    };
    refused(problems)
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Completeness;

    fn service(name: &str) -> String {
        format!(
            "services: [{{name: {name}, namespace: shop, hostname: {name}.shop, vips: [], ports: {{}}}}]\n"
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_in_force_and_a_bad_one_leaves_the_last_good_state() {
        let path = std::env::temp_dir().join(format!("culvert-local-{:016x}", getrandom::u64().unwrap()));
        std::fs::write(&path, service("a")).unwrap();
        let source = LocalSource::open(path.clone(), "").unwrap();
        let (state, (tell, mut told)) = (State::new(), tokio::sync::mpsc::unbounded_channel());
        let scope = crate::task::Scope::new();
        scope.spawn(watch(source, Arc::clone(&state), move |outcome| drop(tell.send(outcome))));
        let names = || {
            let snapshot = state.snapshot();
            let names: Vec<String> = snapshot.services().map(|s| s.name.to_string()).collect();
            (names.join(" "), snapshot.completeness)
        };
        let published = |revision| Some(ReloadOutcome::Published { revision, warnings: 0 });
        assert_eq!(told.recv().await, published(1));
        assert_eq!(names(), ("a".to_owned(), Completeness::Complete));
        std::fs::write(&path, service("b")).unwrap();
        assert_eq!(told.recv().await, published(2));
        assert_eq!(names(), ("b".to_owned(), Completeness::Complete));
        std::fs::write(&path, service("c") + "policies: [{}]\n").unwrap();
        assert!(matches!(told.recv().await, Some(ReloadOutcome::Refused { problems: 1.. })));
        assert_eq!(names(), ("b".to_owned(), Completeness::Stale));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(told.recv().await, Some(ReloadOutcome::Refused { problems: 1 }));
        std::fs::write(&path, service("b")).unwrap();
        assert_eq!(told.recv().await, published(2));
        assert_eq!(names(), ("b".to_owned(), Completeness::Complete));
        std::fs::remove_file(&path).unwrap();
    }
}
