package app

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1alpha1 "istio.io/api/security/v1alpha1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
	"github.com/ambit-mesh/ambit/istiod-lite/xds/xdstest"
	"github.com/ambit-mesh/ambit/mesh/leaktest"
)

func TestMain(m *testing.M) {
	leaktest.Main(m,
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1")) // lives as long as the process
}

const deadline = xdstest.Deadline

// await fails the test if the condition does not hold in time.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited %s for %s", deadline, what)
		}
	}
}

var (
	peerAuthenticationGVR  = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "peerauthentications"}
	authorizationPolicyGVR = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}
	serviceEntryGVR        = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "serviceentries"}
	gatewayGVR             = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"}
	gatewayClassGVR        = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gatewayclasses"}
	httpRouteGVR           = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "httproutes"}
	grpcRouteGVR           = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "grpcroutes"}
	authenticationGVR      = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "requestauthentications"}
	backendTLSPolicyGVR    = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "backendtlspolicies"}
	tlsRouteGVR            = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "tlsroutes"}
	tcpRouteGVR            = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "tcproutes"}
	meshGVR                = schema.GroupVersionResource{Group: "gateway.networking.x-k8s.io", Version: "v1alpha1", Resource: "xmeshes"}
	trafficPolicyGVR       = schema.GroupVersionResource{Group: "gateway.networking.x-k8s.io", Version: "v1alpha1", Resource: "xbackendtrafficpolicies"}
	waypointPolicyGVR      = schema.GroupVersionResource{Group: "ambit.io", Version: "v1alpha1", Resource: "waypointpolicies"}
	virtualServiceGVR      = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "virtualservices"}
	destinationRuleGVR     = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "destinationrules"}
	telemetryGVR           = schema.GroupVersionResource{Group: "telemetry.istio.io", Version: "v1", Resource: "telemetries"}
	workloadEntryGVR       = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "workloadentries"}
)

// api is a fake API server, shared by the replicas of a test. It knows tokens besides objects.
type fakeAPI struct {
	*testing.T
	core    *fake.Clientset
	dynamic *dynamicfake.FakeDynamicClient

	noPeerAuthentications atomic.Bool // as before their definition is there
	deaf                  atomic.Bool // watches from now on tell nothing, as if they were far behind
	watches               sync.Map    // resource -> *atomic.Int32

	mu     sync.Mutex
	tokens map[string]authenticationv1.TokenReviewStatus
}

// listKinds are what is listed by the dynamic client.
var listKinds = map[schema.GroupVersionResource]string{
	peerAuthenticationGVR: "PeerAuthenticationList", authorizationPolicyGVR: "AuthorizationPolicyList",
	serviceEntryGVR: "ServiceEntryList", workloadEntryGVR: "WorkloadEntryList",
	gatewayGVR: "GatewayList", gatewayClassGVR: "GatewayClassList", meshGVR: "XMeshList",
	httpRouteGVR: "HTTPRouteList", grpcRouteGVR: "GRPCRouteList", tlsRouteGVR: "TLSRouteList", tcpRouteGVR: "TCPRouteList",
	destinationRuleGVR: "DestinationRuleList", virtualServiceGVR: "VirtualServiceList", backendTLSPolicyGVR: "BackendTLSPolicyList",
	waypointPolicyGVR: "WaypointPolicyList", telemetryGVR: "TelemetryList", authenticationGVR: "RequestAuthenticationList", trafficPolicyGVR: "XBackendTrafficPolicyList",
	corev1.SchemeGroupVersion.WithResource("configmaps"): "ConfigMapList",
}

func newAPI(t *testing.T, objects ...runtime.Object) *fakeAPI {
	logFIPS(t)
	scheme := runtime.NewScheme()
	a := &fakeAPI{
		T: t, core: fake.NewClientset(objects...), tokens: map[string]authenticationv1.TokenReviewStatus{},
		dynamic: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(scheme, listKinds),
	}
	a.core.PrependReactor("create", "tokenreviews", func(action clienttesting.Action) (bool, runtime.Object, error) {
		review := action.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview).DeepCopy()
		a.mu.Lock()
		defer a.mu.Unlock()
		review.Status = a.tokens[review.Spec.Token]
		return true, review, nil
	})
	missing := func(clienttesting.Action) (bool, runtime.Object, error) {
		if a.noPeerAuthentications.Load() {
			return true, nil, apierrors.NewNotFound(peerAuthenticationGVR.GroupResource(), "")
		}
		return false, nil, nil
	}
	a.dynamic.PrependReactor("list", "peerauthentications", missing)
	a.dynamic.PrependWatchReactor("*", func(action clienttesting.Action) (bool, watch.Interface, error) {
		if _, _, err := missing(action); err != nil {
			return true, nil, err
		}
		w, err := a.dynamic.Tracker().Watch(action.GetResource(), action.GetNamespace())
		a.watching(action.GetResource().Resource)
		return true, w, err
	})
	a.core.PrependWatchReactor("*", func(action clienttesting.Action) (bool, watch.Interface, error) {
		if a.deaf.Load() {
			return true, watch.NewFake(), nil
		}
		w, err := a.core.Tracker().Watch(action.GetResource(), action.GetNamespace())
		a.watching(action.GetResource().Resource)
		return true, w, err
	})
	return a
}

func (a *fakeAPI) watching(resource string) {
	n, _ := a.watches.LoadOrStore(resource, &atomic.Int32{})
	n.(*atomic.Int32).Add(1)
}

// awaitWatch waits until a resource is watched that often: the fake loses what happens between a list and its watch.
func (a *fakeAPI) awaitWatch(times int32, resources ...string) {
	a.Helper()
	for _, r := range resources {
		await(a.T, "a watch of "+r, func() bool {
			n, ok := a.watches.Load(r)
			return ok && n.(*atomic.Int32).Load() >= times
		})
	}
}

// token makes the API server accept a token for a pod.
func (a *fakeAPI) token(token string, pod *corev1.Pod) {
	extra := map[string]authenticationv1.ExtraValue{}
	if pod.Name != "" {
		extra["authentication.kubernetes.io/pod-name"] = []string{pod.Name}
		extra["authentication.kubernetes.io/pod-uid"] = []string{string(pod.UID)}
		extra["authentication.kubernetes.io/node-name"] = []string{pod.Spec.NodeName}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tokens[token] = authenticationv1.TokenReviewStatus{
		Authenticated: true, Audiences: []string{api.TokenAudience},
		User: authenticationv1.UserInfo{Username: "system:serviceaccount:" + pod.Namespace + ":" + pod.Spec.ServiceAccountName, Extra: extra},
	}
}

func (a *fakeAPI) createPod(p *corev1.Pod) {
	a.Helper()
	if _, err := a.core.CoreV1().Pods(p.Namespace).Create(a.Context(), p, metav1.CreateOptions{}); err != nil {
		a.Fatal(err)
	}
}

func (a *fakeAPI) updatePod(p *corev1.Pod) {
	a.Helper()
	if _, err := a.core.CoreV1().Pods(p.Namespace).Update(a.Context(), p, metav1.UpdateOptions{}); err != nil {
		a.Fatal(err)
	}
}

func (a *fakeAPI) deletePod(p *corev1.Pod) {
	a.Helper()
	if err := a.core.CoreV1().Pods(p.Namespace).Delete(a.Context(), p.Name, metav1.DeleteOptions{}); err != nil {
		a.Fatal(err)
	}
}

func (a *fakeAPI) createPeerAuthentication(namespace, name, mode string) {
	a.Helper()
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
		"metadata": map[string]any{"name": name, "namespace": namespace},
		"spec":     map[string]any{"mtls": map[string]any{"mode": mode}},
	}}
	if _, err := a.dynamic.Resource(peerAuthenticationGVR).Namespace(namespace).Create(a.Context(), u, metav1.CreateOptions{}); err != nil {
		a.Fatal(err)
	}
}

// setMeshConfig creates or replaces the mesh's settings.
func (a *fakeAPI) setMeshConfig(text string) {
	a.Helper()
	cm := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: api.DefaultNamespace, Name: api.MeshConfigMap}, Data: map[string]string{api.MeshConfigKey: text},
	}
	maps := a.core.CoreV1().ConfigMaps(api.DefaultNamespace)
	_, err := maps.Update(a.Context(), cm, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = maps.Create(a.Context(), cm, metav1.CreateOptions{})
	}
	if err != nil {
		a.Fatal(err)
	}
}

// pod is a ready, captured pod.
func pod(namespace, name, account, node, ip string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID("uid-" + name),
			Labels: map[string]string{"app": name}, Annotations: map[string]string{api.AnnotationRedirection: api.RedirectionEnabled}},
		Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: account},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
}

// ztunnel is the node proxy's pod on a node, with a token of the same name.
func (a *fakeAPI) ztunnel(node string) *corev1.Pod {
	p := pod(api.DefaultNamespace, "ztunnel-"+node, api.NodeProxy, node, "10.9.0."+node[len(node)-1:])
	delete(p.Annotations, api.AnnotationRedirection)
	a.token(p.Name, p)
	return p
}

// replica is one running control plane.
type replica struct {
	*testing.T
	monitoring, debug, secure, plain string
	roots                            *x509.CertPool
	stop                             func() // asks it to end, and waits until it has
}

// start runs a replica until the test ends.
func (a *fakeAPI) start(change ...func(*Config)) *replica {
	a.Helper()
	r := &replica{T: a.T}
	started, done := make(chan struct{}), make(chan error, 1)
	cfg, err := parseConfig([]string{
		"--monitoring-addr=127.0.0.1:0", "--debug-addr=127.0.0.1:0", "--grpc-addr=127.0.0.1:0", "--plaintext-addr=127.0.0.1:0", "--drain-delay=0s",
	}, io.Discard)
	if err != nil {
		a.Fatal(err)
	}
	for _, f := range change {
		f(&cfg)
	}
	cfg.started = func(w *web, g *grpcServers) {
		r.monitoring, r.debug = w.monitoring.Addr().String(), w.debug.Addr().String()
		r.secure, r.plain = g.secure.Addr().String(), g.plain.Addr().String()
		close(started)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		done <- serve(ctx, cfg, clients{core: a.core, dynamic: a.dynamic, callers: a.core}, slog.New(slog.NewTextHandler(a.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})))
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				a.Errorf("the program ended with: %v", err)
			}
		case <-time.After(deadline):
			a.Errorf("the program did not end within %s", deadline)
		}
	})
	a.Cleanup(r.stop)
	select {
	case <-started:
	case err := <-done:
		done <- err
		a.Fatalf("the program did not start: %v", err)
	case <-time.After(deadline):
		a.Fatalf("the program did not start within %s", deadline)
	}
	secret, err := a.core.CoreV1().Secrets(api.DefaultNamespace).Get(a.Context(), api.CASecret, metav1.GetOptions{})
	if err == nil {
		r.roots = x509.NewCertPool()
		r.roots.AppendCertsFromPEM(secret.Data["root-cert.pem"])
	}
	return r
}

func (r *replica) awaitReady() {
	r.Helper()
	await(r.T, "readiness", func() bool { code, _ := r.get(r.monitoring, "/ready"); return code == http.StatusOK })
}

func (r *replica) get(addr, path string) (int, string) {
	r.Helper()
	res, err := http.Get("http://" + addr + path)
	if err != nil {
		r.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		r.Fatal(err)
	}
	http.DefaultClient.CloseIdleConnections()
	return res.StatusCode, string(text)
}

// dialPlain connects to the address that asks for no credential.
func (r *replica) dialPlain() *grpc.ClientConn {
	return r.dial(r.plain, insecure.NewCredentials())
}

// dialTLS connects as node proxies do, with a certificate if one is given.
func (r *replica) dialTLS(certs ...tls.Certificate) *grpc.ClientConn {
	cfg := &tls.Config{RootCAs: r.roots, ServerName: "istiod.istio-system.svc"}
	if len(certs) > 0 { // shown even to a server that says that it will not take it
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certs[0], nil }
	}
	return r.dial(r.secure, credentials.NewTLS(cfg))
}

func (r *replica) dial(addr string, creds credentials.TransportCredentials) *grpc.ClientConn {
	r.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(creds))
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { conn.Close() })
	return conn
}

func withToken(ctx context.Context, token string) context.Context {
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token, "clusterid", "Kubernetes")
}

// subscribe opens a stream as a node's proxy, and takes what there is.
func (r *replica) subscribe(node string) *xdstest.Client {
	r.Helper()
	c := xdstest.Open(withToken(r.Context(), "ztunnel-"+node), r.T, r.dialTLS(), proxyNode(node))
	c.Subscribe(resource.Address, nil)
	c.Subscribe(resource.Authorization, nil)
	c.NextAck()
	c.NextAck()
	return c
}

func proxyNode(node string) *corev3.Node {
	return &corev3.Node{
		Id: "ztunnel~10.9.0.1~ztunnel-" + node + ".istio-system~istio-system.svc.cluster.local",
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			"NAME": structpb.NewStringValue("ztunnel-" + node), "NAMESPACE": structpb.NewStringValue("istio-system"),
			"NODE_NAME": structpb.NewStringValue(node), "INSTANCE_IPS": structpb.NewStringValue("10.9.0.1"),
		}},
	}
}

// csr is a certificate request for an identity, and its key.
func csr(t *testing.T, id string) (string, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), key
}

// certificate asks for a certificate for id, as a node proxy does for its pods.
func (r *replica) certificate(conn *grpc.ClientConn, token, id string) ([]string, *ecdsa.PrivateKey, error) {
	r.Helper()
	request, key := csr(r.T, id)
	ctx, cancel := context.WithTimeout(withToken(r.Context(), token), deadline)
	defer cancel()
	res, err := securityv1alpha1.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &securityv1alpha1.IstioCertificateRequest{
		Csr: request, ValidityDuration: 3600,
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"ImpersonatedIdentity": structpb.NewStringValue(id)}},
	})
	return res.GetCertChain(), key, err
}

func uid(namespace, name string) string { return fmt.Sprintf("Kubernetes//Pod/%s/%s", namespace, name) }

func spiffe(namespace, account string) string {
	return "spiffe://cluster.local/ns/" + namespace + "/sa/" + account
}

func parseCert(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("no PEM block in %q", text)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// mentions reports an error that does not say what it should.
func mentions(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("error %v, want one that mentions %q", err, w)
		}
	}
}
