package dns

import (
	"testing"

	"github.com/ambit-mesh/ambit/mesh/leaktest"
)

func TestMain(m *testing.M) { leaktest.MainWithSockets(m) }
