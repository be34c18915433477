//! Readiness of all client sockets: one epoll instance of the worker's own,
//! inside tokio's.
//!
//! A connection is then an entry in a table instead of a task, and the worker
//! decides what is read and written when. It is level-triggered: a socket that
//! is not read to its end reports again, so a turn may stop anywhere.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    io::Errno,
};
use tokio::io::{Interest as TokioInterest, unix::AsyncFd};

use crate::connection::{ConnectionKey, Interest};

/// Events taken in one turn.
const EVENTS_MAX: usize = 1024;
const LISTENER: u64 = u64::MAX;

/// Something is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ready {
    Listener,
    Connection {
        key: ConnectionKey,
        read: bool,
        write: bool,
        hung_up: bool,
    },
}

pub(crate) struct Poller {
    epoll: AsyncFd<OwnedFd>,
    /// Empty between two calls; kept for its memory.
    events: Vec<Event>,
}

impl std::fmt::Debug for Poller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Poller")
            .field("epoll", &self.epoll)
            .finish_non_exhaustive()
    }
}

impl Poller {
    /// Must be called within the runtime.
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe for descriptors that may close early; this one is owned"
        )]
        let epoll = AsyncFd::with_interest(epoll, TokioInterest::READABLE)?;
        Ok(Self {
            epoll,
            events: Vec::with_capacity(EVENTS_MAX),
        })
    }

    /// Watches the listening socket. A connection wakes all workers that watch;
    /// were it only one, that one's gate could leave it waiting.
    pub(crate) fn add_listener(&self, listener: impl AsFd) -> io::Result<()> {
        Ok(epoll::add(
            self.epoll.get_ref(),
            listener,
            EventData::new_u64(LISTENER),
            EventFlags::IN,
        )?)
    }

    pub(crate) fn remove_listener(&self, listener: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(self.epoll.get_ref(), listener)?)
    }

    pub(crate) fn add(&self, socket: impl AsFd, key: ConnectionKey) -> io::Result<()> {
        let data = EventData::new_u64(key.to_bits());
        Ok(epoll::add(
            self.epoll.get_ref(),
            socket,
            data,
            EventFlags::IN,
        )?)
    }

    pub(crate) fn remove(&self, socket: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(self.epoll.get_ref(), socket)?)
    }

    pub(crate) fn modify(
        &self,
        socket: impl AsFd,
        key: ConnectionKey,
        interest: Interest,
    ) -> io::Result<()> {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, interest.read);
        flags.set(EventFlags::OUT, interest.write);
        let data = EventData::new_u64(key.to_bits());
        Ok(epoll::modify(self.epoll.get_ref(), socket, data, flags)?)
    }

    /// Waits until something is ready, and appends it to `ready`.
    ///
    /// Cancel-safe: nothing is taken from the kernel before the last await.
    pub(crate) async fn wait(&mut self, ready: &mut Vec<Ready>) -> io::Result<()> {
        loop {
            let mut guard = self.epoll.readable().await?;
            self.events.clear();
            let buffer = rustix::buffer::spare_capacity(&mut self.events);
            match epoll::wait(self.epoll.get_ref(), buffer, Some(&Timespec::default())) {
                Ok(0) => guard.clear_ready(),
                Ok(_) => {
                    ready.extend(self.events.iter().map(ready_of));
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn ready_of(event: &Event) -> Ready {
    let (flags, data) = (event.flags, event.data.u64());
    if data == LISTENER {
        return Ready::Listener;
    }
    Ready::Connection {
        key: ConnectionKey::from_bits(data),
        read: flags.contains(EventFlags::IN),
        write: flags.contains(EventFlags::OUT),
        hung_up: flags.intersects(EventFlags::HUP | EventFlags::ERR),
    }
}
