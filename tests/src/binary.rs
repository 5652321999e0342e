//! The agent's binary, built from the sources that the tests were built from.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// Path of the `ztunnel` binary of this source tree; `CULVERT_ZTUNNEL` names another one.
///
/// Cargo is asked once a process whether it is up to date: a test against yesterday's agent proves nothing.
pub fn ztunnel() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> PathBuf {
    if let Some(path) = std::env::var_os("CULVERT_ZTUNNEL") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "CULVERT_ZTUNNEL={}: no such file", path.display());
        return path;
    }
    // target/<profile>/deps/<test>
    let own = std::env::current_exe().expect("path of the test program");
    let profile = own.ancestors().nth(2).expect("a test program stands in target/<profile>/deps");
    let target = profile.parent().expect("a profile's directory has a parent");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "-p", "ztunnel", "--target-dir"]).arg(target);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("start cargo");
    assert!(
        output.status.success(),
        "cargo build -p ztunnel failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    profile.join("ztunnel")
}
