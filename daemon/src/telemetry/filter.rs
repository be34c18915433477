//! What is logged, and how that changes while the process runs.

use std::sync::{Mutex, OnceLock, PoisonError};

use tracing::info;
use tracing_subscriber::{EnvFilter, Registry, filter::ParseError, reload};

/// Longest filter, in bytes; one that names every module is far shorter.
const FILTER_BYTES_MAX: usize = 4096;

/// The filter of this process: a process logs in one place, so it has one.
static CURRENT: OnceLock<Handle> = OnceLock::new();

/// Why a filter is not taken.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It cannot be understood.
    #[error("`{filter}` is no log filter; write it as `info` or `info,muster_worker=debug`")]
    Syntax {
        /// What was given.
        filter: String,
        /// Why.
        source: ParseError,
    },
    /// It names nothing, which would log errors only and surprise.
    #[error("a log filter is not empty; `off` logs nothing")]
    Empty,
    /// It is longer than any sensible one.
    #[error("a log filter has at most {FILTER_BYTES_MAX} bytes")]
    Long,
    /// This process has not set up its logs.
    #[error("logging is not set up")]
    NotSetUp,
}

/// A filter that is in the subscriber, and its text.
#[derive(Debug)]
pub(super) struct Handle {
    filter: reload::Handle<EnvFilter, Registry>,
    text: Mutex<String>,
}

impl Handle {
    /// From here on [`set_filter`] changes it.
    pub(super) fn install(self) {
        // The subscriber is the first, so this is, too.
        let _ = CURRENT.set(self);
    }
}

/// A filter layer that can be changed.
///
/// # Errors
///
/// When the filter cannot be understood.
pub(super) fn reloadable(
    filter: &str,
) -> Result<(reload::Layer<EnvFilter, Registry>, Handle), FilterError> {
    let (layer, handle) = reload::Layer::new(parse(filter)?);
    let text = Mutex::new(filter.to_owned());
    let handle = Handle {
        filter: handle,
        text,
    };
    Ok((layer, handle))
}

/// What this process logs, in the syntax of `RUST_LOG`; empty before logging is
/// set up.
#[must_use]
pub fn filter() -> String {
    CURRENT.get().map_or_else(String::new, |current| {
        let text = current.text.lock().unwrap_or_else(PoisonError::into_inner);
        text.clone()
    })
}

/// Changes what this process logs; the filter that is in effect already
/// changes nothing.
///
/// # Errors
///
/// When the filter cannot be understood or logging is not set up; the present
/// one stays.
pub fn set_filter(filter: &str) -> Result<(), FilterError> {
    let parsed = parse(filter)?;
    let current = CURRENT.get().ok_or(FilterError::NotSetUp)?;
    let mut text = current.text.lock().unwrap_or_else(PoisonError::into_inner);
    if *text == filter {
        return Ok(());
    }
    // Said under whichever of the two lets it through.
    info!(filter, "Changing the log filter.");
    let reloaded = current.filter.reload(parsed);
    reloaded.map_err(|_| FilterError::NotSetUp)?;
    filter.clone_into(&mut text);
    info!(filter, "Changed the log filter.");
    Ok(())
}

fn parse(filter: &str) -> Result<EnvFilter, FilterError> {
    if filter.len() > FILTER_BYTES_MAX {
        return Err(FilterError::Long);
    }
    if filter.trim().is_empty() {
        return Err(FilterError::Empty);
    }
    EnvFilter::try_new(filter).map_err(|source| FilterError::Syntax {
        filter: filter.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use tracing_subscriber::{fmt, layer::SubscriberExt as _};

    use super::*;
    use crate::exit::chain;

    #[derive(Debug, Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_filter_that_makes_no_sense_is_refused_with_the_reason() {
        for (filter, about) in [
            ("muster_worker=loud", "`muster_worker=loud`"),
            ("info,=,=", "info,=,="),
            ("", "not empty"),
            (" ", "not empty"),
        ] {
            let error = parse(filter).err().map(|error| chain(&error));
            let error = error.unwrap_or_else(|| panic!("{filter} was taken"));
            assert!(error.contains(about), "{error}");
        }
        assert!(matches!(parse(&"a,".repeat(3000)), Err(FilterError::Long)));
    }

    #[test]
    fn a_filter_changes_while_the_process_runs_and_a_wrong_one_changes_nothing() {
        let lines = Lines::default();
        let (layer, handle) = reloadable("warn").unwrap();
        let writer = lines.clone();
        let format = fmt::layer().with_writer(move || writer.clone());
        let subscriber = Registry::default().with(layer).with(format);
        // The only test of this process that logs.
        tracing::subscriber::set_global_default(subscriber).unwrap();
        handle.install();

        tracing::info!("unheard");
        assert!(set_filter("loud=loud").is_err());
        assert_eq!(filter(), "warn");
        tracing::info!("unheard");
        set_filter("info").unwrap();
        assert_eq!(filter(), "info");
        tracing::info!("heard");
        set_filter("off").unwrap();
        tracing::error!("unheard");

        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains(" heard"), "{text}");
        assert!(!text.contains("unheard"), "{text}");
    }
}
