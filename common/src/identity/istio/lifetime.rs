//! How long a certificate is asked to be valid, where the server's limit is less than what is wanted.
//!
//! istiod refuses such a request, and names its limit. A server that names none is asked for its own default, then for
//! half as long, and so on.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

/// The server decides.
const ITS_OWN: i64 = 0;
/// Not worth asking for: renewals would follow each other.
const LEAST_S: i64 = 60;
/// Requests in a row for one certificate.
const TRIES: usize = 6;

/// The validity that this server is asked for.
pub(super) struct Lifetime {
    wanted: i64,
    /// What it signed for last.
    agreed: Mutex<i64>,
}

/// The tries for one certificate.
pub(super) struct Tries {
    asked: i64,
    /// Of those that were refused.
    shortest: i64,
    is_open_refused: bool,
    left: usize,
}

impl Lifetime {
    pub(super) fn new(wanted: Duration) -> Self {
        let wanted = i64::try_from(wanted.as_secs()).unwrap_or(i64::MAX);
        Self { wanted, agreed: Mutex::new(wanted) }
    }

    pub(super) fn tries(&self) -> Tries {
        let asked = *self.agreed.lock().unwrap_or_else(PoisonError::into_inner);
        Tries { asked, shortest: self.wanted, is_open_refused: false, left: TRIES - 1 }
    }

    /// The server has signed for this long; says so where it is not what it signed for before.
    pub(super) fn agreed(&self, seconds: i64) {
        let before =
            std::mem::replace(&mut *self.agreed.lock().unwrap_or_else(PoisonError::into_inner), seconds);
        if before != seconds {
            tracing::warn!(
                wanted_s = self.wanted,
                "the CA refuses certificates as long as SECRET_TTL; from now on it is asked for {}; set SECRET_TTL to no more \
                 than its limit",
                if seconds == ITS_OWN { "its own default".to_owned() } else { format!("{seconds} s") }
            );
        }
    }
}

impl Tries {
    /// Seconds to ask for.
    pub(super) fn asked(&self) -> i64 {
        self.asked
    }

    /// Whether there is something else to ask for after the server has refused with `message`.
    pub(super) fn refused(&mut self, message: &str) -> bool {
        if self.left == 0 || !is_about_lifetime(message) {
            return false;
        }
        self.left -= 1;
        match self.asked {
            ITS_OWN => self.is_open_refused = true,
            asked => self.shortest = self.shortest.min(asked),
        }
        self.asked = match (named(message, self.shortest), self.is_open_refused) {
            (Some(limit), _) => limit,
            (None, false) => ITS_OWN,
            (None, true) => self.shortest / 2,
        };
        self.asked == ITS_OWN || self.asked >= LEAST_S
    }
}

fn is_about_lifetime(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["ttl", "lifetime", "validity", "duration"].iter().any(|word| message.contains(word))
}

/// The last time in a message that is shorter than `than` seconds.
fn named(message: &str, than: i64) -> Option<i64> {
    let words = message.split(|c: char| c.is_whitespace() || "(),;".contains(c));
    words.filter_map(|word| seconds(word.trim_end_matches('.'))).rfind(|found| (1..than).contains(found))
}

/// A time as Go writes it, such as `1h0m0s`, rounded down.
fn seconds(text: &str) -> Option<i64> {
    let (mut rest, mut total) = (text, 0.0_f64);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at(end);
        let number: f64 = number.parse().ok()?;
        let units = [("ms", 0.001), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
        let (unit, factor) = units.into_iter().find(|(name, _)| unit.starts_with(name))?;
        total += number * factor;
        rest = rest.get(end + unit.len()..)?;
    }
    (!text.is_empty() && total < i64::MAX as f64).then_some(total as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is asked for after each refusal, until nothing is left.
    fn asked(wanted: u64, messages: &[&str]) -> Vec<i64> {
        let mut tries = Lifetime::new(Duration::from_secs(wanted)).tries();
        let mut all = vec![tries.asked()];
        for message in messages.iter().cycle().take(20) {
            if !tries.refused(message) {
                break;
            }
            all.push(tries.asked());
        }
        all
    }

    #[test]
    fn a_refused_lifetime_is_followed_by_the_limit_or_by_shorter_ones() {
        let istiod = "CSR signing error (requested TTL 24h0m0s is greater than the max allowed TTL 1h0m0s)";
        let cases: [(u64, &[&str], &[i64]); 7] = [
            (86_400, &[istiod, "no"], &[86_400, 3600]),
            // A limit that does not help, then none.
            (86_400, &[istiod], &[86_400, 3600, 0, 1800, 900, 450]),
            (86_400, &["validity too long"], &[86_400, 0, 43_200, 21_600, 10_800, 5400]),
            (100, &["lifetime?"], &[100, 0]),
            (3600, &["TTL 2h is more than 90m allowed", "x"], &[3600, 0]),
            (3600, &["max TTL: 30m."], &[3600, 1800, 0, 900, 450, 225]),
            (3600, &["the CSR is malformed"], &[3600]),
        ];
        for (wanted, messages, want) in cases {
            assert_eq!(asked(wanted, messages), want, "{messages:?}");
        }
    }

    #[test]
    fn times_are_read_as_go_writes_them() {
        for (text, want) in [
            ("1h0m0s", Some(3600)),
            ("24h0m0s", Some(86_400)),
            ("1m30.5s", Some(90)),
            ("500ms", Some(0)),
            ("90m", Some(5400)),
            ("", None),
            ("10", None),
            ("h", None),
            ("1.2.3s", None),
            ("1d", None),
            ("1h-", None),
            ("99999999999999999999999h", None),
        ] {
            assert_eq!(seconds(text), want, "{text}");
        }
    }

    #[test]
    fn what_was_agreed_is_asked_for_the_next_time() {
        let lifetime = Lifetime::new(Duration::from_secs(86_400));
        lifetime.agreed(3600);
        assert_eq!(lifetime.tries().asked(), 3600);
        lifetime.agreed(ITS_OWN);
        let mut tries = lifetime.tries();
        assert!(tries.asked() == ITS_OWN && tries.refused("TTL"), "the default was refused");
        assert_eq!(tries.asked(), 43_200);
    }
}
