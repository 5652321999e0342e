//! Which events are logged: levels by scope, changed while the process runs.

use std::fmt;

use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};

use super::events::OUR_CRATES;

/// Scopes that one filter may name: each change adds to it.
const MAX_SCOPES: usize = 100;
/// Longest name of a scope.
const MAX_NAME: usize = 200;

/// A filter cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// It does not parse.
    #[error("log filter {0:?} is not understood; it is a list such as info,access=off,state=debug")]
    Syntax(String),
    /// It would grow without end.
    #[error("the log filter would name more than {MAX_SCOPES} scopes; reset it first")]
    TooMany,
}

/// Called with what is to be in force from now on.
pub(super) type Install = Box<dyn Fn(Targets) + Send>;

/// Levels by scope, as they were asked for.
pub(super) struct Filter {
    start: Targets,
    asked: Targets,
    install: Option<Install>,
}

impl Filter {
    /// A list in the syntax of `RUST_LOG`. Without a level of its own it starts from `info`.
    ///
    /// **Errors**: it does not parse.
    pub(super) fn parse(filter: &str) -> Result<Self, FilterError> {
        let filter = if filter.trim().is_empty() { "info" } else { filter };
        let wrong = || FilterError::Syntax(filter.to_owned());
        let parsed: Targets = filter.parse().map_err(|_| wrong())?;
        let level = parsed.default_level().unwrap_or(LevelFilter::INFO);
        let start = parsed.with_default(level);
        Ok(Self { asked: start.clone(), start, install: None })
    }

    pub(super) fn on_change(&mut self, install: Install) {
        self.install = Some(install);
    }

    /// Adds `levels`: a level for all, and `scope=level` pairs; `scope:level` is taken too, as Istio's tool writes it.
    pub(super) fn change(&mut self, reset: bool, levels: &str) -> Result<(), FilterError> {
        let mut next = if reset { self.start.clone() } else { self.asked.clone() };
        for one in levels.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            let wrong = || FilterError::Syntax(one.chars().take(MAX_NAME).collect());
            next = match one.rsplit_once(['=', ':']) {
                Some((scope, level)) => {
                    let named =
                        !scope.is_empty() && scope.len() <= MAX_NAME && scope.chars().all(is_of_a_name);
                    let level = parse_level(level).filter(|_| named).ok_or_else(wrong)?;
                    next.with_target(scope, level)
                }
                None => next.with_default(parse_level(one).ok_or_else(wrong)?),
            };
        }
        if next.iter().count() > MAX_SCOPES {
            return Err(FilterError::TooMany);
        }
        self.asked = next;
        if let Some(install) = &self.install {
            install(self.targets());
        }
        Ok(())
    }

    /// The filter for `tracing`, which knows scopes by their whole names.
    pub(super) fn targets(&self) -> Targets {
        let mut targets =
            Targets::new().with_default(self.asked.default_level().unwrap_or(LevelFilter::INFO));
        for (scope, level) in self.asked.iter() {
            for krate in OUR_CRATES {
                targets = targets.with_target(format!("{krate}{scope}"), level);
            }
            targets = targets.with_target(scope, level);
        }
        targets
    }

    pub(super) fn takes(&self, scope: &str, level: Level) -> bool {
        self.targets().would_enable(scope, &level)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.asked.fmt(f)
    }
}

fn is_of_a_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-:.".contains(c)
}

/// Names only: a number or a bare scope would be a slip that turns everything on.
fn parse_level(text: &str) -> Option<LevelFilter> {
    Some(match text.to_ascii_lowercase().as_str() {
        "off" => LevelFilter::OFF,
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn changes_add_up_until_they_are_reset() {
        let mut filter = Filter::parse("info,access=off").unwrap();
        for (reset, levels, shown) in [
            (false, "", "access=off,info"),
            (false, "debug", "access=off,debug"),
            (false, "state=trace,access=warn", "access=warn,state=trace,debug"),
            (false, "outbound:error", "outbound=error,access=warn,state=trace,debug"),
            (
                false,
                "ztunnel::inbound:debug",
                "ztunnel::inbound=debug,outbound=error,access=warn,state=trace,debug",
            ),
            (true, "h2=Debug", "access=off,h2=debug,info"),
            (true, "", "access=off,info"),
        ] {
            filter.change(reset, levels).unwrap();
            let (mut got, mut want) = (filter.to_string(), shown.to_owned());
            for text in [&mut got, &mut want] {
                let mut parts: Vec<_> = text.split(',').collect();
                parts.sort_unstable();
                *text = parts.join(",");
            }
            assert_eq!(got, want, "{levels:?}");
        }
    }

    proptest! {
        /// Whatever is asked for, the filter can be shown and read back.
        #[test]
        fn any_change_leaves_a_filter(levels in "[a-z=:,]{0,30}|(state|access|h2::codec)[=:](info|off|trace)", reset: bool) {
            let mut filter = Filter::parse("info").unwrap();
            let _refused = filter.change(reset, &levels);
            let again = Filter::parse(&filter.to_string()).unwrap();
            prop_assert_eq!(again.takes("access", Level::INFO), filter.takes("access", Level::INFO));
        }
    }

    #[test]
    fn what_is_wrong_changes_nothing() {
        let mut filter = Filter::parse("info").unwrap();
        for bad in
            ["loud", "state", "state=loud", "state=", "=debug", "debug,x=1", "5", "a b=info", "x\ny=info"]
        {
            assert!(matches!(filter.change(true, bad), Err(FilterError::Syntax(_))), "{bad:?}");
        }
        let many: Vec<String> = (0..=MAX_SCOPES).map(|n| format!("s{n}=info")).collect();
        assert_eq!(filter.change(false, &many.join(",")), Err(FilterError::TooMany));
        assert_eq!(filter.to_string(), "info");
        assert!(filter.takes("access", Level::INFO) && !filter.takes("access", Level::DEBUG));
        assert!(Filter::parse("info,access=loud").is_err());
    }
}
