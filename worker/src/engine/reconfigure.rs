//! Another configuration while the worker runs: everything that needs no new
//! process.

use muster_daemon::{
    Config,
    descriptors::{self, DescriptorsError},
};

use super::Engine;
use crate::{
    auth::{Auth, AuthError},
    connection::Admission,
    names, rules,
};

/// Why a worker goes on with the configuration that it has.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReconfigureError {
    #[error(transparent)]
    Descriptors(#[from] DescriptorsError),
    #[error(transparent)]
    Auth(#[from] AuthError),
}

impl Engine {
    /// Takes over what can change under the connections there are; all of it or
    /// nothing. Keys are read again from their files.
    ///
    /// # Errors
    ///
    /// When the descriptors do not suffice or the keys cannot be used.
    pub(crate) fn reconfigure(&mut self, config: &Config) -> Result<(), ReconfigureError> {
        let limit = descriptors::raise_limit();
        let connections_max = descriptors::connections_allowed(config, limit)?;
        self.core.auth = Auth::load(&config.auth)?;
        self.core.rules = rules(config);
        self.core.names = names(config);
        let settings = &mut self.settings;
        settings.connections_max = connections_max as usize;
        settings
            .upgrade
            .origins
            .clone_from(&config.listener.origins);
        settings.upgrade.head_bytes_max = config.listener.head_bytes_max.as_usize();
        let outbox_bytes_max = config.limits.outbox_bytes_max.as_usize();
        self.connections.set_outbox_bytes_max(outbox_bytes_max);
        let origins = self
            .connections
            .iter()
            .filter_map(|connection| match connection.admission {
                Admission::Admitted(origin) => Some(origin),
                Admission::Refused => None,
            });
        let per_address = config.limits.connections_per_address_max;
        self.addresses.set_max(per_address, origins);
        if self.accepting != super::Accepting::No {
            self.look_at_gate();
        }
        Ok(())
    }
}
