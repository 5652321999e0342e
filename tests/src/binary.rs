//! The programs under test, built from the sources that the tests were built from.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// Path of the `ztunnel` binary of this source tree; `CULVERT_ZTUNNEL` names another one.
///
/// Cargo is asked once a process whether it is up to date: a test against yesterday's agent proves nothing.
pub fn ztunnel() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let named = || {
        let path = PathBuf::from(std::env::var_os("CULVERT_ZTUNNEL")?);
        assert!(path.is_file(), "CULVERT_ZTUNNEL={}: no such file", path.display());
        Some(path)
    };
    BUILT.get_or_init(|| named().unwrap_or_else(|| build("ztunnel"))).clone()
}

/// Path of the `culvert` binary of this source tree, up to date as [`ztunnel`] is.
pub fn culvert() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("culvert")).clone()
}

/// Path of the `waypoint` binary of this source tree, up to date as [`ztunnel`] is.
pub fn waypoint() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("waypoint")).clone()
}

/// Builds the binary of the package of the same name.
fn build(package: &str) -> PathBuf {
    // target/<profile>/deps/<test>
    let own = std::env::current_exe().expect("path of the test program");
    let profile = own.ancestors().nth(2).expect("a test program stands in target/<profile>/deps");
    let target = profile.parent().expect("a profile's directory has a parent");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "-p", package, "--bin", package, "--target-dir"]).arg(target);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("start cargo");
    assert!(
        output.status.success(),
        "cargo build -p {package} failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    profile.join(package)
}
