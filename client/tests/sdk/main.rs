//! The client against a server by hand, over real sockets.

// The attribute lets clippy know that helpers are test code, too.
#[cfg(test)]
mod channels;
#[cfg(test)]
mod connecting;
#[cfg(test)]
mod server;
#[cfg(test)]
mod talking;
