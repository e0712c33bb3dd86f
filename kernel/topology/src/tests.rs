mod descriptions;
mod emulator;
mod faults;
mod firmware;
mod properties;
