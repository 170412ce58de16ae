package wire_test

import (
	"path/filepath"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster/clustertest"
	"github.com/ambit-mesh/ambit/istiod-lite/l7"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/xds"
	"github.com/ambit-mesh/ambit/waypoint/config"
)

// TestWaypointTakes: the waypoint rejects nothing of what the control plane makes of its own stories, in the order in which it is
// sent.
func TestWaypointTakes(t *testing.T) {
	names, err := filepath.Glob("../../istiod-lite/l7/testdata/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range archive.Files {
				if f.Name == "in.yaml" {
					take(t, f.Data)
				}
			}
		})
	}
}

func take(t *testing.T, objects []byte) {
	t.Helper()
	parsed, err := clustertest.Parse(objects)
	if err != nil {
		t.Fatal(err)
	}
	mesh := translate.Mesh{ClusterID: "Kubernetes", ClusterDomain: "cluster.local", TrustDomain: "cluster.local"}
	c := l7.All(clustertest.Snapshot(mesh, parsed), l7.Place{})
	sent := map[string][]*discoveryv3.Resource{}
	for _, r := range c.Clusters {
		send(t, sent, xds.TypeCluster, r.Name, r)
	}
	for _, r := range c.LoadAssignments {
		send(t, sent, xds.TypeEndpoints, r.ClusterName, r)
	}
	for _, r := range c.Listeners {
		send(t, sent, xds.TypeListener, r.Name, r)
	}
	for _, r := range c.Routes {
		send(t, sent, xds.TypeRoutes, r.Name, r)
	}
	store := config.NewStore(nil)
	for _, h := range store.Handlers() {
		for _, r := range h.Apply(sent[h.TypeURL], nil) {
			t.Errorf("%s %s: %v", h.TypeURL, r.Name, r.Err)
		}
	}
	now := store.Load()
	for _, r := range c.Routes {
		if now.Routes(r.Name) == nil {
			t.Errorf("route table %s is not in force", r.Name)
		}
	}
	for _, a := range c.LoadAssignments {
		if cl := now.Cluster(a.ClusterName); cl == nil || cl.Endpoints == nil {
			t.Errorf("cluster %s is not in force, or without its endpoints", a.ClusterName)
		}
	}
}

func send(t *testing.T, to map[string][]*discoveryv3.Resource, typ, name string, m proto.Message) {
	t.Helper()
	body, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	to[typ] = append(to[typ], &discoveryv3.Resource{Name: name, Version: "1", Resource: body})
}
