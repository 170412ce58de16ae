// Package suite is the Gateway API's own conformance suite, unmodified, as a test binary: it has nothing but the call that runs
// it. It is a module of its own because the suite wants a newer Go than the product; package conformance compiles and runs it.
package suite
