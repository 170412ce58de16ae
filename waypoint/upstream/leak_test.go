package upstream

import (
	"testing"

	"github.com/ambit-mesh/ambit/mesh/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }
