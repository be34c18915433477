//! The protocol crate seen from outside: properties, and comparison with others.

mod frames;
mod frames_differential;
mod streams;
