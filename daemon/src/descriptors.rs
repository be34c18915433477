//! File descriptors: as many as the machine gives, and what they allow.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Config;

/// Connections per worker where nothing is configured and descriptors suffice.
const CONNECTIONS_DEFAULT: u64 = 18_000;
/// Descriptors of a worker that are not client connections: listener, links,
/// control stream, epoll, logs, and room for connections that are being
/// refused or handed over.
const DESCRIPTORS_RESERVED: u64 = 256;

/// Why the descriptors do not suffice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorsError {
    #[error(
        "limits.connections_max {wanted} needs {} descriptors, but this process may have {limit} \
         (RLIMIT_NOFILE), which allows {allowed} connections: lower it or raise the limit \
         (`ulimit -Hn`, systemd `LimitNOFILE=`)",
        u64::from(*wanted) + DESCRIPTORS_RESERVED
    )]
    TooFew {
        wanted: u32,
        limit: u64,
        allowed: u64,
    },
    #[error(
        "this process may have {limit} descriptors (RLIMIT_NOFILE), which are needed for itself: \
         raise the limit above {DESCRIPTORS_RESERVED} (`ulimit -Hn`, systemd `LimitNOFILE=`)"
    )]
    None { limit: u64 },
}

/// Raises the limit on open descriptors to its hard value and returns what it
/// is then; `u64::MAX` is no limit.
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // A kernel may refuse what it named as the maximum; then the limit stays.
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
    .unwrap_or(u64::MAX)
}

/// Connections that one worker takes when it may have `limit` descriptors.
///
/// # Errors
///
/// When `limits.connections_max` asks for more than fit, or none fit.
pub fn connections_allowed(config: &Config, limit: u64) -> Result<u32, DescriptorsError> {
    let allowed = limit.saturating_sub(DESCRIPTORS_RESERVED);
    if allowed == 0 {
        return Err(DescriptorsError::None { limit });
    }
    let wanted = config.limits.connections_max;
    if let Some(wanted) = wanted
        && u64::from(wanted) > allowed
    {
        return Err(DescriptorsError::TooFew {
            wanted,
            limit,
            allowed,
        });
    }
    let fitting = u32::try_from(allowed.min(CONNECTIONS_DEFAULT))
        .expect("the default number of connections fits into 32 bits");
    Ok(wanted.unwrap_or(fitting))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(connections_max: Option<u32>) -> Config {
        let mut config = Config::default();
        config.limits.connections_max = connections_max;
        config
    }

    #[test]
    fn without_a_setting_the_descriptors_or_the_default_decide() {
        assert_eq!(connections_allowed(&config(None), 1024), Ok(768));
        assert_eq!(connections_allowed(&config(None), 20_000), Ok(18_000));
        assert_eq!(connections_allowed(&config(None), u64::MAX), Ok(18_000));
    }

    #[test]
    fn a_setting_that_fits_is_taken_as_it_is() {
        assert_eq!(connections_allowed(&config(Some(768)), 1024), Ok(768));
        assert_eq!(
            connections_allowed(&config(Some(500_000)), 1 << 20),
            Ok(500_000)
        );
    }

    #[test]
    fn a_setting_that_does_not_fit_is_refused_with_the_limit_and_what_it_allows() {
        let error = connections_allowed(&config(Some(769)), 1024).unwrap_err();
        let message = error.to_string();
        for part in ["limits.connections_max 769", "1024", "768", "RLIMIT_NOFILE"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_limit_that_leaves_no_connection_is_refused() {
        let refused = connections_allowed(&config(None), 256);
        assert_eq!(refused, Err(DescriptorsError::None { limit: 256 }));
    }

    #[test]
    fn the_limit_is_raised_to_what_the_system_allows() {
        let limit = raise_limit();
        assert_eq!(
            getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
            limit
        );
    }
}
