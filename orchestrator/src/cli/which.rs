//! What of a list an operator wants to see.

use muster_proto::control as pb;
use muster_wire::Position;

use super::WORKERS_MAX;
use crate::control::LIST_LIMIT_MAX;

const LIMIT_MAX: i64 = LIST_LIMIT_MAX as i64;

/// Which channels.
#[derive(Debug, clap::Args)]
pub(crate) struct ChannelsArgs {
    /// Only those whose name begins so.
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    prefix: String,
    /// Only those whose name comes after this one: goes on where a list was cut.
    #[arg(long, value_name = "CHANNEL", allow_hyphen_values = true)]
    after: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
    limit: u32,
}

impl ChannelsArgs {
    pub(crate) fn request(self) -> pb::ChannelsRequest {
        let Self {
            prefix,
            after,
            limit,
        } = self;
        pb::ChannelsRequest {
            prefix,
            limit,
            after,
        }
    }
}

/// Which publications.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct HistoryArgs {
    /// Only what came after this position.
    #[arg(long, value_name = "GENERATION:OFFSET")]
    since: Option<Position>,
    /// Only what came before the publication at this position.
    #[arg(long, value_name = "GENERATION:OFFSET")]
    before: Option<Position>,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
    limit: u32,
    /// The newest first instead of the oldest.
    #[arg(long)]
    pub(crate) newest: bool,
}

impl HistoryArgs {
    pub(crate) fn request(self, channel: &str) -> pb::HistoryRequest {
        pb::HistoryRequest {
            channel: channel.into(),
            since: self.since.map(pb::HistoryPosition::from),
            before: self.before.map(pb::HistoryPosition::from),
            limit: self.limit,
            newest_first: self.newest,
        }
    }
}

/// Which connections.
#[derive(Debug, clap::Args)]
pub(crate) struct ConnectionsArgs {
    /// Only those of the worker in this slot.
    #[arg(long, value_name = "SLOT", value_parser = clap::value_parser!(u32).range(1..=i64::from(WORKERS_MAX)))]
    worker: Option<u32>,
    /// Only those that subscribe to this channel.
    #[arg(long, allow_hyphen_values = true)]
    channel: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
    limit: u32,
}

impl ConnectionsArgs {
    pub(crate) fn request(self) -> pb::ConnectionsRequest {
        pb::ConnectionsRequest {
            worker: self.worker.unwrap_or_default(),
            channel: self.channel,
            limit: self.limit,
        }
    }
}
