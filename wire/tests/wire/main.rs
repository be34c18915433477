//! The protocol crate seen from outside: properties, and comparison with others.

// The attribute lets clippy know that helpers are test code, too.
#[cfg(test)]
mod client_channels;
#[cfg(test)]
mod client_session;
#[cfg(test)]
mod frames;
#[cfg(test)]
mod frames_differential;
#[cfg(test)]
mod streams;
