//! Whether two sets of rounds differ by more than chance, without assuming how they are distributed.

/// The exact two-sided Mann-Whitney test: how probable rank sums at least this uneven are if both came from the same
/// source. Ties count as half. 1 where a side is empty.
///
/// **Shape:** sides of up to [`ROUNDS_MAX`] rounds; of longer ones the first are taken.
pub(super) fn probability(a: &[f64], b: &[f64]) -> f64 {
    let a = a.get(..ROUNDS_MAX).unwrap_or(a);
    let b = b.get(..ROUNDS_MAX).unwrap_or(b);
    if a.is_empty() || b.is_empty() {
        return 1.0;
    }
    let mut all: Vec<f64> = a.iter().chain(b).copied().collect();
    all.sort_by(f64::total_cmp);
    // Ranks doubled, so that those of ties are whole numbers.
    let rank = |value: f64| {
        let below = all.iter().filter(|v| **v < value).count();
        let same = all.iter().filter(|v| **v == value).count();
        2 * below + same + 1
    };
    let ranks: Vec<usize> = all.iter().map(|v| rank(*v)).collect();
    let seen: usize = a.iter().map(|v| rank(*v)).sum();
    let ways = ways(&ranks, a.len());
    let total: f64 = ways.iter().sum();
    // All sums as far from the expected one as what was seen, on both sides.
    let expected = a.len() * (all.len() + 1);
    let far = expected.abs_diff(seen);
    let extreme = ways.iter().enumerate().filter(|(sum, _)| expected.abs_diff(*sum) >= far);
    (extreme.map(|(_, n)| n).sum::<f64>() / total).min(1.0)
}

/// Rounds of one side that are counted exactly: more would only make the table larger.
const ROUNDS_MAX: usize = 64;

/// In how many ways `take` of the ranks have each sum.
fn ways(ranks: &[usize], take: usize) -> Vec<f64> {
    let most: usize = ranks.iter().sum();
    let mut ways = vec![vec![0.0; most + 1]; take + 1];
    if let Some(none) = ways.first_mut().and_then(|w| w.first_mut()) {
        *none = 1.0;
    }
    for rank in ranks {
        for taken in (1..=take).rev() {
            let (fewer, these) = ways.split_at_mut(taken);
            let (Some(fewer), Some(these)) = (fewer.last(), these.first_mut()) else { continue };
            for (before, now) in fewer.iter().zip(these.iter_mut().skip(*rank)) {
                *now += before;
            }
        }
    }
    ways.pop().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn agrees_with_published_tables() {
        // Wholly apart: 2 of the ways to choose, from both ends.
        for (n, m, ways) in [(3, 3, 20.0), (4, 4, 70.0), (5, 5, 252.0), (5, 6, 462.0)] {
            let (a, b): (Vec<f64>, Vec<f64>) =
                ((0..n).map(f64::from).collect(), (0..m).map(|v| f64::from(v) + 100.0).collect());
            assert!((probability(&a, &b) - 2.0 / ways).abs() < 1e-12, "{n} and {m}");
        }
        // U = 2 of 5 and 5: 0.032 in tables of the test.
        let p = probability(&[1.0, 2.0, 3.0, 4.0, 7.5], &[5.0, 6.0, 7.0, 8.0, 9.0]);
        assert!((p - 10.0 / 252.0).abs() < 0.03 && p > 2.0 / 252.0, "{p}");
    }

    #[test]
    fn nothing_and_equals_say_nothing() {
        assert_eq!(probability(&[], &[1.0]), 1.0);
        assert_eq!(probability(&[1.0; 5], &[1.0; 5]), 1.0);
        assert_eq!(probability(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0]), 1.0);
        let many: Vec<f64> = (0..200).map(f64::from).collect();
        assert!(probability(&many, &many) > 0.9, "longer sides are cut, and stay cheap");
    }

    proptest! {
        /// Which side is the first, and in which order rounds came, says nothing.
        #[test]
        fn it_is_symmetric(mut a in prop::collection::vec(0.0..9.0_f64, 0..9), b in prop::collection::vec(0.0..9.0_f64, 0..9)) {
            let p = probability(&a, &b);
            prop_assert!((0.0..=1.0).contains(&p));
            prop_assert!((p - probability(&b, &a)).abs() < 1e-9);
            a.reverse();
            prop_assert!((p - probability(&a, &b)).abs() < 1e-9);
        }

        /// A unit is no evidence.
        #[test]
        fn scale_does_not_matter(a in prop::collection::vec(0.0..9.0_f64, 1..9), b in prop::collection::vec(0.0..9.0_f64, 1..9)) {
            let times = |values: &[f64]| values.iter().map(|v| v * 1024.0).collect::<Vec<_>>();
            prop_assert!((probability(&a, &b) - probability(&times(&a), &times(&b))).abs() < 1e-9);
        }
    }
}
