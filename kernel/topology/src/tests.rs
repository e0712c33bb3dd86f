mod descriptions;
mod emulator;
mod faults;
mod firmware;
mod measured;
mod properties;
