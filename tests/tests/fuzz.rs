//! The laws of the fuzz targets, on the corpus and on seeded mutations of it: what the stable compiler can run.

use std::path::Path;

#[path = "../fuzz/laws/guard.rs"]
mod guard;
#[path = "../fuzz/laws/netlink.rs"]
mod netlink;
#[path = "../fuzz/laws/zds.rs"]
mod zds;

/// Mutations of each file of a corpus.
const MUTATIONS: usize = 400;

/// A small generator, so that a failure can be had again: xorshift64*, Marsaglia 2003, Vigna 2016.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).expect("31 bits") % sides.max(1)
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.roll(256)).expect("a byte")
    }

    /// A few changes: a byte, a bit, a piece taken out, doubled, or taken from another file.
    fn mutate(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..=self.roll(4) {
            let at = self.roll(bytes.len());
            let end = (at + self.roll(12)).min(bytes.len());
            match self.roll(6) {
                0 => bytes.insert(at, self.byte()),
                1 => drop(bytes.drain(at..end)),
                2 => bytes.extend_from_within(at..end),
                3 => {
                    let from = self.roll(other.len());
                    let to = (from + self.roll(40)).min(other.len());
                    bytes.splice(at..end, other[from..to].iter().copied());
                }
                _ if bytes.is_empty() => {}
                4 => bytes[at] ^= 1 << self.roll(8),
                _ => bytes[at] = self.byte(),
            }
        }
    }
}

/// Runs `law` on the corpus of a target and on mutations; a failure prints the bytes.
fn run(target: &str, law: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut names: Vec<_> =
        std::fs::read_dir(&dir).expect("a corpus").map(|e| e.expect("an entry").path()).collect();
    names.sort();
    let files: Vec<Vec<u8>> = names.iter().map(|name| std::fs::read(name).expect("a file")).collect();
    assert!(!files.is_empty(), "{target} has no corpus");
    let mut dice = Dice(0x5eed_0005);
    for (number, file) in files.iter().enumerate() {
        law(file);
        for _ in 0..MUTATIONS {
            let mut bytes = file.clone();
            dice.mutate(&mut bytes, &files[(number + 1) % files.len()]);
            if std::panic::catch_unwind(|| law(&bytes)).is_err() {
                panic!("{target}: {bytes:?}");
            }
        }
    }
}

#[test]
fn frames_of_a_peer() {
    run("guard", guard::frames);
}

#[test]
fn header_blocks_of_a_peer() {
    run("hpack", guard::headers);
}

#[test]
fn messages_of_the_other_process() {
    run("zds", zds::messages);
}

#[test]
fn answers_of_the_kernel() {
    run("netlink", netlink::answers);
}
