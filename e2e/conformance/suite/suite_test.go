package suite

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

// TestConformance runs what the suite's flags choose.
func TestConformance(t *testing.T) { conformance.RunConformance(t) }
