package app

import (
	"bytes"
	"context"
	"encoding/pem"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/settings"
	"github.com/ambit-mesh/ambit/mesh/xds"
)

// files holds what a node proxy finds mounted: its token and the trust bundle.
func files(t *testing.T, a *fakeAPI, token string) (root, tokenFile string) {
	t.Helper()
	dir := t.TempDir()
	root, tokenFile = filepath.Join(dir, api.RootCertKey), filepath.Join(dir, "istio-token")
	await(t, "the trust bundle", func() bool {
		cm, err := a.core.CoreV1().ConfigMaps(api.DefaultNamespace).Get(t.Context(), api.RootCertConfigMap, metav1.GetOptions{})
		return err == nil && os.WriteFile(root, []byte(cm.Data[api.RootCertKey]), 0o600) == nil
	})
	if err := os.WriteFile(tokenFile, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	return root, tokenFile
}

// A node proxy's own libraries against the control plane: they learn the mesh, get certificates, and go over to another
// replica without noticing more than what changed meanwhile.
func TestNodeProxyLibraries(t *testing.T) {
	a := newAPI(t, namespaceObject(api.DefaultNamespace), namespaceObject("shop"))
	a.createPod(a.ztunnel("node1"))
	a.createPod(pod("shop", "web", "web", "node1", "10.0.0.1"))
	a.createPod(pod("shop", "api", "api", "node2", "10.0.0.2"))
	if _, err := a.core.CoreV1().Services("shop").Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "api"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.7", Selector: map[string]string{"app": "api"}, Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	first, second := a.start(), a.start()
	first.awaitReady()
	second.awaitReady()
	a.awaitWatch(2, "pods", "configmaps")
	root, token := files(t, a, "ztunnel-node1")

	var replica atomic.Pointer[string] // where the Service leads
	replica.Store(&first.secure)
	channel := func() (xds.Conn, error) {
		return identity.NewChannel(identity.ChannelConfig{Address: "https://" + *replica.Load(), RootCA: root, ServerName: "istiod.istio-system.svc", TokenFile: token})
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	dir := directory.New(directory.Config{Node: "node1", Logger: log})
	var changed atomic.Int32
	defer dir.Subscribe(func(c directory.Change) {
		changed.Add(int32(len(c.Workloads) + len(c.Services) + len(c.Policies)))
	})()
	var held settings.Holder
	client, err := xds.NewClient(xds.Config{Connect: channel, Node: proxyNode("node1"), Logger: log, Handlers: []xds.Handler{
		{TypeURL: xds.TypeAuthorization, Apply: dir.HandleAuthorizations}, {TypeURL: xds.TypeAddress, Apply: dir.HandleAddresses},
		held.Handler(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := client.Run(ctx); err != nil {
			t.Errorf("client: %v", err)
		}
	})
	defer wg.Wait()
	defer cancel()
	<-client.Synced()
	web := dir.WorkloadByPod("shop", "web", "web")
	service := dir.ServiceByAddr("", netip.MustParseAddr("10.96.0.7"), "shop")
	if web == nil || service == nil {
		t.Fatalf("the directory has workload %v and service %v", web, service)
	}
	await(t, "the mesh's settings", func() bool { return held.Current().TrustDomain == "cluster.local" })
	a.setMeshConfig("outboundTrafficPolicy: {mode: REGISTRY_ONLY}\ntrustDomainAliases: [old.example]")
	await(t, "a change of the mesh's settings", func() bool { return held.Current().RegistryOnly })
	if diff := cmp.Diff([]string{"old.example"}, held.Current().TrustDomainAliases); diff != "" {
		t.Errorf("trust domain aliases (-want +got):\n%s", diff)
	}
	conn, err := channel()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	issuer := &identity.GRPCIssuer{Conn: conn, Impersonate: true}
	svid, err := identity.Request(t.Context(), issuer, web.Identity)
	if err != nil {
		t.Fatal(err)
	}
	if svid.Identity.String() != spiffe("shop", "web") {
		t.Errorf("certificate of %s", svid.Identity)
	}
	_, err = identity.Request(t.Context(), issuer, dir.Workload(uid("shop", "api")).Identity)
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("certificate of another node's pod: %v, want PermissionDenied", err)
	}

	// The roll: one pod comes while the proxy moves over.
	before := changed.Load()
	replica.Store(&second.secure)
	first.stop()
	a.createPod(pod("shop", "late", "late", "node1", "10.0.0.3"))
	late, err := dir.WaitForPod(t.Context(), "shop", "late", "late")
	if err != nil {
		t.Fatal(err)
	}
	await(t, "who looks at the directory is told", func() bool { return changed.Load() != before })
	if n := changed.Load() - before; n != 1 {
		t.Errorf("%d things changed for the proxy, want the new pod only", n)
	}
	conn, err = channel()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	again, err := identity.Request(t.Context(), &identity.GRPCIssuer{Conn: conn, Impersonate: true}, late.Identity)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(lastBlock(t, svid), lastBlock(t, again)) {
		t.Error("the replicas certify under different roots")
	}
}

func lastBlock(t *testing.T, s *identity.SVID) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(s.RootsPEM))
	if block == nil {
		t.Fatal("no roots came with a certificate")
	}
	return block.Bytes
}
