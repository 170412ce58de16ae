package translate_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster/clustertest"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
)

// TestWaypointBound: what objects of the story say of their waypoint.
func TestWaypointBound(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/waypoints.txtar")
	if err != nil {
		t.Fatal(err)
	}
	objects, err := clustertest.Parse(archive.Files[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, s := range translate.All(clustertest.Snapshot(mesh, objects)).Statuses {
		if s.Type == api.ConditionWaypointBound {
			got[s.Key.Name] = s.Want.Status + " " + s.Want.Reason
		}
	}
	want := map[string]string{
		"a-inherits": "True WaypointAccepted", "c-means-young": "False WaypointIsNotReady", "d-means-open": "True WaypointAccepted",
		"e-is-not-allowed": "False AttachmentDenied", "h-inherits": "True WaypointAccepted",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("conditions (-want +got):\n%s", diff)
	}
}

// TestWaypointReady: traffic is sent to a waypoint from the first ready replica on, waits while all of them are away, and goes on
// without it when it is being taken away.
func TestWaypointReady(t *testing.T) {
	key := cluster.Key{Namespace: "shop", Name: "w"}
	base := func() translate.WaypointInput {
		return translate.WaypointInput{
			Gateway:    &cluster.Gateway{Key: key, Class: "c", Listeners: []cluster.Listener{{Port: 15008, Protocol: "HBONE"}}},
			Class:      &cluster.GatewayClass{Name: "c", Controller: api.ControllerWaypoint},
			Service:    &cluster.Service{Key: key, Gateway: "w", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}},
			Deployment: &cluster.Deployment{Key: key, Gateway: "w", Replicas: 2, Ready: 1},
		}
	}
	for name, tc := range map[string]struct {
		change func(*translate.WaypointInput)
		why    string
	}{
		"ready":                   {func(*translate.WaypointInput) {}, ""},
		"no replica yet":          {func(in *translate.WaypointInput) { in.Deployment.Ready = 0 }, "no replica"},
		"no replica for a while":  {func(in *translate.WaypointInput) { in.Deployment.Ready = 0; in.Gateway.Programmed = true }, ""},
		"scaled to zero":          {func(in *translate.WaypointInput) { in.Deployment.Replicas = 0; in.Gateway.Programmed = true }, "scaled to zero"},
		"Deployment is going":     {func(in *translate.WaypointInput) { in.Deployment.Deleting = true; in.Gateway.Programmed = true }, "Deployment"},
		"Deployment of another":   {func(in *translate.WaypointInput) { in.Deployment.Gateway = "v" }, "Deployment"},
		"Gateway is going":        {func(in *translate.WaypointInput) { in.Gateway.Deleting = true }, "deleted"},
		"Service of another":      {func(in *translate.WaypointInput) { in.Service.Gateway = "" }, "Service"},
		"no listener for tunnels": {func(in *translate.WaypointInput) { in.Gateway.Listeners[0].Port = 80 }, "listener"},
	} {
		t.Run(name, func(t *testing.T) {
			in := base()
			tc.change(&in)
			w := translate.WaypointOf(mesh, in)
			if w == nil || (tc.why == "") != (w.Unready == "") || !strings.Contains(w.Unready, tc.why) {
				t.Errorf("got %+v, want it unready for %q", w, tc.why)
			}
		})
	}
	for name, change := range map[string]func(*translate.WaypointInput){
		"another controller": func(in *translate.WaypointInput) { in.Class.Controller = "example.com/other" },
		"class not known":    func(in *translate.WaypointInput) { in.Class = nil },
		"another revision":   func(in *translate.WaypointInput) { in.Gateway.Revision = "canary" },
	} {
		in := base()
		change(&in)
		if w := translate.WaypointOf(mesh, in); w != nil {
			t.Errorf("%s: got %+v, want none", name, w)
		}
	}
}
