//! Where the log goes may stall or fail: traffic goes on, what is lost is counted.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader};

use culvert::lab::{Pod, wait_until};
use culvert_tests::mesh::{Mesh, SOON};
use culvert_tests::net::Server;
use culvert_tests::traffic::Traffic;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// Enough lines for every queue: each frame of each tunnel is told.
const LOUD: [&str; 2] = ["--log", "trace"];

struct World {
    mesh: Mesh,
    client: Pod,
    server: Pod,
}

impl World {
    /// Both nodes' agents, that of the client with its standard output somewhere else.
    fn new(output: impl FnOnce(&Mesh) -> String) -> Self {
        let mut mesh = Mesh::new();
        let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
        let output = output(&mesh);
        mesh.start_by("a", &format!("exec \"$@\" > {output}"), &LOUD);
        Self { mesh, client, server }
    }

    fn dropped(&self) -> f64 {
        self.mesh.agent("a").metric("culvert_log_lines_dropped_total", &[]).unwrap()
    }

    /// Requests until lines have been dropped, and many more after that: none may fail.
    fn goes_on(&self) {
        let echo = Server::echo(&self.server, 8080);
        let traffic = Traffic::start(&self.client, (self.server.v4.into(), 8080), 4);
        let before = self.dropped();
        wait_until(
            "lines are dropped",
            SOON * 2,
            || (self.dropped() > before).then_some(()),
            || format!("{} dropped", self.dropped()),
        )
        .unwrap();
        traffic.more(200);
        traffic.end_well("with a log that goes nowhere");
        drop(echo);
    }
}

fn fifo(mesh: &Mesh) -> (String, File) {
    let path = mesh.lab.dir().join("log.fifo");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    // Both ends, so that neither open waits for the other.
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    (path.display().to_string(), file)
}

#[test]
fn a_pipe_that_nobody_reads_does_not_hold_up_traffic() {
    let mut reader = None;
    let world = World::new(|mesh| {
        let (path, file) = fifo(mesh);
        reader = Some(file);
        path
    });
    world.goes_on();
    // Whoever reads at last is told what is missing.
    let lines = BufReader::new(reader.unwrap()).lines();
    let mut notices = lines.map_while(Result::ok).filter(|line| line.contains("log lines were dropped"));
    let notice = notices.next().expect("a line about it");
    let count: f64 = notice.rsplit_once("lines=").unwrap().1.parse().unwrap();
    assert!(count > 0.0 && count <= world.dropped(), "{notice}, {} dropped", world.dropped());
    drop(notices);
    world.mesh.finish();
}

#[test]
fn a_pipe_whose_reader_is_gone_does_not_hold_up_traffic() {
    let mut reader = None;
    let world = World::new(|mesh| {
        let (path, file) = fifo(mesh);
        reader = Some(file);
        path
    });
    drop(reader);
    world.goes_on();
    world.mesh.finish();
}

#[test]
fn a_full_disk_under_the_log_does_not_hold_up_traffic() {
    let world = World::new(|_| "/dev/full".to_owned());
    world.goes_on();
    world.mesh.finish();
}
