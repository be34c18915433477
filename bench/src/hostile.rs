//! Clients that misbehave beside the measured ones.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use clap::ValueEnum;
use muster_wire::frame::{Opcode, masked_frame};
use serde::Serialize;

use super::{
    BenchError,
    clients::{Event, Protocol},
    clock::{Micros, SECOND, now},
    options::{RunOptions, Target},
};

/// Messages in one write of a flood.
const BATCH: usize = 1000;
/// A little less than the longest message that a cluster takes by default.
const ARRAY_BYTES: usize = 1_000_000;
/// How long a client that comes for the flood may take to be ready.
const READY_TIMEOUT: Micros = 10 * SECOND;
const READ_BUFFER_BYTES: usize = 64 << 10;
const MASK: [u8; 4] = [1, 2, 3, 4];

/// What a flooding client sends, as fast as it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Flood {
    /// Small publications, each a message of its own.
    Packets,
    /// Arrays of small publications, 1 MB each.
    Arrays,
    /// WebSocket pings.
    Pings,
    /// Subscriptions to ever new channels, and their ends.
    Subscribes,
}

/// What became of the misbehaving clients.
#[derive(Debug, Default, Serialize)]
pub(super) struct Hostilities {
    /// Messages, or packets of arrays, that the flooding client got rid of.
    pub(super) flood_messages: u64,
    /// The flooding client was cut off.
    pub(super) flood_closed: bool,
    /// Stalled clients whose connections stand.
    pub(super) stalled_open: usize,
    /// Stalled clients that were cut off.
    pub(super) stalled_closed: usize,
    /// What the stalled clients found when they read at last.
    pub(super) stalled_deliveries: u64,
}

/// The misbehaving clients of a run.
#[derive(Debug)]
pub(super) struct Hostile {
    stop: Arc<AtomicBool>,
    flood: Option<JoinHandle<(u64, bool)>>,
    stalled: Vec<Connection>,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    protocol: Protocol,
}

impl Hostile {
    /// Connects them; the flood begins at once.
    pub(super) fn start(run: &RunOptions, url: &str, channel: &str) -> Result<Self, BenchError> {
        let target: Target = url.parse()?;
        let stop = Arc::new(AtomicBool::new(false));
        let flood = match run.flood {
            None => None,
            Some(kind) => {
                let connection = Connection::open(&target, None)?;
                let stop = Arc::clone(&stop);
                Some(thread::spawn(move || connection.flood(kind, &stop)))
            }
        };
        let stalled = (0..run.stalled).map(|_| {
            let channel = Some(channel.to_owned());
            Connection::open(&target, channel)
        });
        Ok(Self {
            stalled: stalled.collect::<Result<_, _>>()?,
            stop,
            flood,
        })
    }

    /// Ends the flood and lets the stalled clients read.
    pub(super) fn finish(self) -> Hostilities {
        self.stop.store(true, Ordering::Relaxed);
        let mut hostilities = Hostilities::default();
        if let Some(flood) = self.flood {
            // A panic in there was printed; the run's own figures count.
            (hostilities.flood_messages, hostilities.flood_closed) =
                flood.join().unwrap_or_default();
        }
        for mut connection in self.stalled {
            let (deliveries, is_closed) = connection.read_all();
            hostilities.stalled_deliveries += deliveries;
            hostilities.stalled_closed += usize::from(is_closed);
            hostilities.stalled_open += usize::from(!is_closed);
        }
        hostilities
    }
}

impl Connection {
    fn open(target: &Target, channel: Option<String>) -> Result<Self, BenchError> {
        let mut stream =
            TcpStream::connect(target.addr).map_err(BenchError::io("cannot connect"))?;
        let mut out = Vec::new();
        let mut protocol = Protocol::begin(target, channel, 0, &mut out);
        let (mut buffer, mut unread) = ([0; 4096], Vec::new());
        let until = now() + READY_TIMEOUT;
        while !protocol.is_ready() {
            stream
                .write_all(&out)
                .map_err(BenchError::io("cannot write to a client's socket"))?;
            out.clear();
            let left = Duration::from_micros(until.saturating_sub(now()).max(1));
            stream
                .set_read_timeout(Some(left))
                .map_err(BenchError::io("cannot set a timeout"))?;
            let len = stream.read(&mut buffer).map_err(BenchError::io(
                "a client that is to misbehave is not served",
            ))?;
            if len == 0 {
                return Err(BenchError::Message("a connection ended early".into()));
            }
            unread.extend_from_slice(&buffer[..len]);
            let used = protocol.receive(&mut unread, &mut out, |_| {});
            unread.drain(..used);
        }
        Ok(Self { stream, protocol })
    }

    /// Sends until told to stop; how many messages went out, and whether the
    /// connection was cut. What comes back is thrown away.
    fn flood(self, kind: Flood, stop: &AtomicBool) -> (u64, bool) {
        let Ok(mut reading) = self.stream.try_clone() else {
            return (0, true);
        };
        let reader = thread::spawn(move || {
            let mut buffer = vec![0; READ_BUFFER_BYTES];
            let _ = reading.set_read_timeout(None);
            while let Ok(1..) = reading.read(&mut buffer) {}
        });
        let mut stream = self.stream;
        let _ = stream.set_write_timeout(Some(Duration::from_millis(100)));
        let (mut messages, mut closed, mut round) = (0, false, 0);
        'flood: while !stop.load(Ordering::Relaxed) {
            let (bytes, count) = kind.batch(round);
            round += 1;
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                if stop.load(Ordering::Relaxed) {
                    break 'flood;
                }
                match stream.write(rest) {
                    Ok(len) => rest = &rest[len..],
                    Err(error)
                        if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(_) => {
                        closed = true;
                        break 'flood;
                    }
                }
            }
            messages += count;
        }
        let _ = stream.shutdown(Shutdown::Both);
        let _ = reader.join();
        (messages, closed)
    }

    /// Reads what there is; how many publications, and whether the connection
    /// is over.
    fn read_all(&mut self) -> (u64, bool) {
        let _ = self
            .stream
            .set_read_timeout(Some(Duration::from_millis(500)));
        let mut buffer = vec![0; READ_BUFFER_BYTES];
        let (mut unread, mut deliveries, mut closed) = (Vec::new(), 0, false);
        while !closed {
            match self.stream.read(&mut buffer) {
                Ok(0) => closed = true,
                Ok(len) => {
                    unread.extend_from_slice(&buffer[..len]);
                    let mut out = Vec::new();
                    let used = self
                        .protocol
                        .receive(&mut unread, &mut out, |event| match event {
                            Event::Delivery(_) => deliveries += 1,
                            Event::Closed(_) => closed = true,
                            Event::Ready | Event::Answer { .. } | Event::Other => {}
                        });
                    unread.drain(..used);
                    closed |= self.stream.write_all(&out).is_err();
                }
                Err(error) => {
                    return (
                        deliveries,
                        !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
                    );
                }
            }
        }
        (deliveries, closed)
    }
}

impl Flood {
    /// The bytes of one write, and how many messages they are.
    fn batch(self, round: usize) -> (Vec<u8>, u64) {
        const PUBLISH: &str = r##"{"event":"#publish","data":{"channel":"flood","data":1}}"##;
        let mut out = Vec::new();
        let mut count = BATCH;
        match self {
            Self::Packets => {
                for _ in 0..BATCH {
                    masked_frame(Opcode::Text, PUBLISH.as_bytes(), MASK, &mut out);
                }
            }
            Self::Arrays => {
                count = ARRAY_BYTES / (PUBLISH.len() + 1);
                let array = format!("[{}]", vec![PUBLISH; count].join(","));
                masked_frame(Opcode::Text, array.as_bytes(), MASK, &mut out);
            }
            Self::Pings => {
                for _ in 0..BATCH {
                    masked_frame(Opcode::Ping, b"x", MASK, &mut out);
                }
            }
            Self::Subscribes => {
                for n in round * BATCH / 2..(round + 1) * BATCH / 2 {
                    let subscribe = format!(
                        r##"{{"event":"#subscribe","data":{{"channel":"flood:{n}"}},"cid":{n}}}"##
                    );
                    masked_frame(Opcode::Text, subscribe.as_bytes(), MASK, &mut out);
                    let unsubscribe = format!(r##"{{"event":"#unsubscribe","data":"flood:{n}"}}"##);
                    masked_frame(Opcode::Text, unsubscribe.as_bytes(), MASK, &mut out);
                }
            }
        }
        (out, count as u64)
    }
}
