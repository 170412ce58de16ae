// Package route compiles an Envoy RouteConfiguration into a Table that requests are matched against, and knows what each
// route does to a request and its response. It is pure: no I/O, no clock, no state but the counters that keep weights. It
// opens no connection and sends nothing: package proxy does what a route says.
//
// Rules of the room. The first route in order that matches wins, however it is found. A match allocates nothing. What
// cannot be honoured is an error of Compile that names the field; nothing is left out silently. Everything that Compile
// returns is immutable and may be used by any number of goroutines.
package route
