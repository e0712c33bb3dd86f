mod descriptions;
mod faults;
mod firmware;
mod properties;
