//! What sessions ask of the worker: tokens, names, rights.

use muster_wire::{
    CHANNEL_NAME_BYTES_MAX, ChannelName, ChannelNameError,
    session::{Action, Host},
    token::{TokenError, UnixSeconds, Verified},
};

use crate::{auth::Auth, channels::Channels, namespaces::Namespaces};

/// What channel names may be, and what they mean.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) namespaces: Namespaces,
    /// Longest name that a client may use.
    pub(crate) bytes_max: usize,
    /// Publications that a client may ask for at once.
    pub(crate) history_publications_max: u32,
    /// Bytes of data that it then gets at most, but for one publication.
    pub(crate) history_bytes_max: u64,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            namespaces: Namespaces::default(),
            bytes_max: CHANNEL_NAME_BYTES_MAX,
            history_publications_max: 1000,
            history_bytes_max: 128 * 1024,
        }
    }
}

/// What a session may ask of the worker.
pub(super) struct SessionHost<'w> {
    pub(super) auth: &'w Auth,
    pub(super) names: &'w Names,
    pub(super) channels: &'w Channels,
}

impl Host for SessionHost<'_> {
    fn verify(&self, token: &str, now: UnixSeconds) -> Result<Verified, TokenError> {
        self.auth.verify(token, now)
    }

    fn intern(&self, channel: &str) -> Result<ChannelName, ChannelNameError> {
        match self.channels.name(channel) {
            Some(name) => Ok(name.clone()),
            None if channel.len() > self.names.bytes_max => Err(ChannelNameError::TooLong {
                len: channel.len(),
                max: self.names.bytes_max,
            }),
            None => ChannelName::try_from(channel),
        }
    }

    fn allows(&self, action: Action, channel: &str, is_authenticated: bool) -> bool {
        let namespaces = &self.names.namespaces;
        namespaces.allows(action, channel, is_authenticated)
    }

    fn history_limit(&self, channel: &str) -> Option<u32> {
        let has_history = self.names.namespaces.has_history(channel);
        has_history.then_some(self.names.history_publications_max)
    }
}
