//! The floor without a hop: one process.

use std::{io, net::TcpListener};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use super::{EVENTS_MAX, Settings, clients::Clients, wait};

const LISTENER: u64 = u64::MAX;

/// Serves until it is killed.
///
/// # Errors
/// When the system does not let it listen or wait.
pub fn run_single(settings: Settings, ready: impl FnOnce(&TcpListener)) -> io::Result<()> {
    let listener = TcpListener::bind(settings.listen)?;
    listener.set_nonblocking(true)?;
    ready(&listener);
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(
        &epoll,
        &listener,
        EventData::new_u64(LISTENER),
        EventFlags::IN,
    )?;
    let mut clients = Clients::new();
    let mut events = Vec::with_capacity(EVENTS_MAX);
    let mut publications = Vec::new();
    loop {
        wait(&epoll, &mut events)?;
        for event in &events {
            if event.data.u64() == LISTENER {
                clients.accept(&epoll, &listener)?;
                continue;
            }
            let key = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
            clients.handle(&epoll, key, event.flags, &mut publications);
            for publication in publications.drain(..) {
                clients.deliver(&epoll, &publication.channel, &publication.frame);
            }
        }
        clients.handle_time(&epoll);
    }
}
