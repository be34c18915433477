//! Why a link or the whole broker ends.

use std::{io, net::SocketAddr, path::PathBuf};

use muster_proto::LINK_VERSION;
use muster_wire::ChannelNameError;

/// Why a broker could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The async runtime or the signal handlers could not be set up.
    #[error("cannot set up the broker's runtime")]
    Runtime(#[source] io::Error),
    /// The socket's path does not fit into a Unix socket address.
    #[error(
        "socket path {} has {len} bytes, at most {max} are allowed: choose a shorter runtime directory",
        path.display()
    )]
    SocketPathTooLong {
        /// The path.
        path: PathBuf,
        /// Its bytes.
        len: usize,
        /// Bytes a path may have.
        max: usize,
    },
    /// The Unix socket could not be bound.
    #[error("cannot listen on {}", path.display())]
    BindSocket {
        /// The socket's path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The TCP address could not be bound.
    #[error("cannot listen on {addr}")]
    BindTcp {
        /// The address.
        addr: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// There is no place for the journal.
    #[error(transparent)]
    Journal(#[from] crate::journal::HomeError),
    /// A part of the broker ended that never should.
    #[error("{part} has stopped")]
    PartStopped {
        /// Which one.
        part: &'static str,
        /// Why, where it says so.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

/// Why the broker ended a link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("link protocol version {theirs}, this broker speaks {LINK_VERSION}")]
    WrongVersion { theirs: u32 },
    #[error("the first frame is not Hello")]
    HelloMissing,
    #[error("hello: sent twice")]
    HelloRepeated,
    #[error("hello.link: another link has this id")]
    LinkIdTaken,
    #[error("no Hello within 10 s")]
    HelloTimeout,
    #[error("cannot read from the worker: {reason}")]
    Unreadable { reason: String },
    #[error("frame: empty or unknown")]
    FrameEmpty,
    #[error("publish.seq: {found} instead of {expected}")]
    SeqNotConsecutive { expected: u64, found: u64 },
    #[error("{field}: {error}")]
    Channel {
        field: &'static str,
        error: ChannelNameError,
    },
    #[error("credit.link: the stream has begun with another link")]
    CreditLinkChanged,
    #[error("no progress for 10 s although there was something to get")]
    Stuck,
    #[error("the broker stops")]
    Stopping,
}
