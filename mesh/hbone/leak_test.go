package hbone

import (
	"testing"

	"github.com/ambit-mesh/ambit/mesh/leaktest"
)

// TestMain wants goroutines and sockets back when all tests are done.
func TestMain(m *testing.M) { leaktest.MainWithSockets(m) }
