//! What differs for channels whose names begin alike.

use muster_daemon::config::{self, Namespace, Right, SlowClient};
use muster_wire::session::Action;

/// The namespaces, by channel.
#[derive(Debug, Default)]
pub(crate) struct Namespaces(config::Namespaces);

impl Namespaces {
    pub(crate) fn new(namespaces: Vec<Namespace>) -> Self {
        Self(config::Namespaces::new(namespaces))
    }

    /// Whether a client may do that, with a token that stands or without.
    pub(crate) fn allows(&self, action: Action, channel: &str, is_authenticated: bool) -> bool {
        let right = self
            .of(channel)
            .map_or(Right::Anyone, |namespace| match action {
                Action::Publish => namespace.publish,
                Action::Subscribe => namespace.subscribe,
            });
        right.allows(is_authenticated)
    }

    pub(crate) fn slow_client(&self, channel: &str) -> SlowClient {
        self.of(channel)
            .map_or(SlowClient::default(), |namespace| namespace.slow_client)
    }

    /// Whether clients may read what the channel keeps.
    pub(crate) fn has_history(&self, channel: &str) -> bool {
        self.of(channel)
            .is_some_and(|namespace| namespace.history.is_some())
    }

    fn of(&self, channel: &str) -> Option<&Namespace> {
        self.0.of(channel.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(prefix: &str, publish: Right) -> Namespace {
        Namespace {
            prefix: prefix.into(),
            publish,
            ..Namespace::default()
        }
    }

    #[test]
    fn the_longest_prefix_that_fits_counts_wherever_it_stands() {
        let namespaces = Namespaces::new(vec![
            namespace("game:", Right::Authenticated),
            namespace("", Right::Nobody),
            namespace("game:open:", Right::Anyone),
        ]);
        let may = |channel, token| namespaces.allows(Action::Publish, channel, token);
        assert!(!may("other", true));
        assert!(!may("game:1", false));
        assert!(may("game:1", true));
        assert!(may("game:open:1", false));
        assert!(!may("", true));
    }

    #[test]
    fn options_of_a_shorter_prefix_are_not_inherited() {
        let mut short = namespace("a", Right::Nobody);
        short.slow_client = SlowClient::Latest;
        let namespaces = Namespaces::new(vec![short, namespace("ab", Right::Authenticated)]);
        assert_eq!(namespaces.slow_client("a1"), SlowClient::Latest);
        assert_eq!(namespaces.slow_client("ab1"), SlowClient::Close);
        assert!(namespaces.allows(Action::Subscribe, "a1", false));
    }
}
