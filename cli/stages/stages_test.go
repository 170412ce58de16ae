package stages

import (
	"testing"

	"github.com/ambit-mesh/ambit/cli/release"
)

func TestLastComplete(t *testing.T) {
	history := []*release.Revision{
		{Number: 1, Status: "superseded", Description: "ambit install v1"},
		{Number: 2, Status: "superseded", Description: "ambit upgrade to v2"},
		{Number: 3, Status: "superseded", Description: partly + "ambit upgrade to v3, as far as the control plane"},
		{Number: 4, Status: "failed", Description: "ambit upgrade to v3"},
		{Number: 5, Status: "deployed", Description: partly + "ambit upgrade to v3, as far as the node agent"},
		{Number: 6, Status: "pending-upgrade", Description: "ambit upgrade to v3"},
	}
	for before, want := range map[int]int{6: 2, 5: 2, 2: 1, 1: 0} {
		got := 0
		if r := LastComplete(history, before); r != nil {
			got = r.Number
		}
		if got != want {
			t.Errorf("before %d: %d, want %d", before, got, want)
		}
	}
}
