//! What the kernel alone costs: servers that do nothing else.
//!
//! `floor` is one process with one epoll instance. It answers the benchmark's
//! clients and nobody else: it knows their packets by how they begin, checks
//! nothing, acknowledges nothing but subscriptions, and sends each delivery, a
//! frame that is built once, with one `send` of its own. `floor-cluster` is the
//! same with a hop: two workers, and a broker that each publication goes
//! through, over Unix sockets, one message a send.
//!
//! Every figure of a benchmark is worth most as a ratio to these in the same
//! run.

mod clients;
mod cluster;
mod server;

pub use self::{
    cluster::{run_cluster, run_worker},
    server::run_single,
};

use std::{io, net::SocketAddr, time::Duration};

use rustix::event::{Timespec, epoll};

/// As a cluster does it by default.
const PING_INTERVAL: Duration = Duration::from_secs(8);
/// How often it is looked who is due for a ping.
const TICK: Duration = Duration::from_millis(100);
const READ_BUFFER_BYTES: usize = 64 << 10;
const EVENTS_MAX: usize = 1024;

/// What a floor needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Where clients connect.
    pub listen: SocketAddr,
}

/// Waits for events, at most a tick.
fn wait(epoll: &impl std::os::fd::AsFd, events: &mut Vec<epoll::Event>) -> io::Result<()> {
    let timeout = Timespec::try_from(TICK).unwrap_or_default();
    events.clear();
    match epoll::wait(
        epoll,
        rustix::buffer::spare_capacity(events),
        Some(&timeout),
    ) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
