package release

import (
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/action"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/release/common"
	v1 "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage"
	"helm.sh/helm/v4/pkg/storage/driver"
)

func records(t *testing.T, revisions ...*v1.Release) *Releases {
	t.Helper()
	cfg := action.NewConfiguration()
	memory := driver.NewMemory()
	memory.SetNamespace("mesh")
	cfg.Releases = storage.Init(memory)
	for _, r := range revisions {
		r.Name, r.Namespace = Name, "mesh"
		r.Chart = &chart.Chart{Metadata: &chart.Metadata{Name: "ambit", Version: "1.0.0", AppVersion: "v1.0.0"}}
		if err := cfg.Releases.Create(r); err != nil {
			t.Fatal(err)
		}
	}
	return &Releases{cfg: cfg, namespace: "mesh"}
}

func TestCurrentNone(t *testing.T) {
	if got, err := records(t).Current(); got != nil || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
}

// TestCurrentCutOff: an ambit that was killed while it applied must not lock everybody out; one that is at it must.
func TestCurrentCutOff(t *testing.T) {
	pending := func(age time.Duration) *v1.Release {
		return &v1.Release{Version: 1, Info: &v1.Info{Status: common.StatusPendingUpgrade, LastDeployed: time.Now().Add(-age)}}
	}
	if _, err := records(t, pending(10*time.Second)).Current(); err == nil || !strings.Contains(err.Error(), "revision 1 is being applied since 10s") {
		t.Errorf("one that is being applied: %v", err)
	}
	r := records(t, pending(2*time.Minute))
	got, err := r.Current()
	if err != nil {
		t.Fatal(err)
	}
	if got.Status != "failed" || got.Version != "v1.0.0" {
		t.Errorf("one that was cut off: %+v", got)
	}
	// It is recorded, so that Helm takes the next revision.
	history, err := r.History()
	if err != nil || len(history) != 1 || history[0].Status != "failed" {
		t.Errorf("history %v, %v", history, err)
	}
}

func TestStored(t *testing.T) {
	r := records(t, &v1.Release{Version: 3, Config: map[string]any{"tag": "x"}, Info: &v1.Info{Status: common.StatusSuperseded}})
	c, vals, err := r.Stored(3)
	if err != nil || c.Version() != "v1.0.0" || vals["tag"] != "x" {
		t.Errorf("%v, %v, %v", c, vals, err)
	}
	if _, _, err := r.Stored(4); err == nil {
		t.Error("a revision that is not recorded was found")
	}
}
