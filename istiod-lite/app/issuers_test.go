package app

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/mesh/jwks"
)

// publicKeys is a key set of one key with a name.
func publicKeys(t *testing.T, id string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: id}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestIssuers: what an issuer publishes is with waypoints as soon as they are told anything, follows the issuer, stays while it is away,
// and the policy says how it is.
func TestIssuers(t *testing.T) {
	var keys atomic.Pointer[string]
	publish := func(text string) { keys.Store(&text) }
	publish(publicKeys(t, "first"))
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if text := keys.Load(); text != nil {
			_, _ = w.Write([]byte(*text))
			return
		}
		http.Error(w, "away", http.StatusServiceUnavailable)
	}))
	defer issuer.Close()
	web := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Labels: map[string]string{api.LabelUseWaypoint: "waypoint"}},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}
	a := newAPI(t, web)
	a.applies()
	var statuses sync.Map // text by name
	a.dynamic.PrependReactor("patch", "requestauthentications", func(action clienttesting.Action) (bool, runtime.Object, error) {
		patch := action.(clienttesting.PatchAction)
		statuses.Store(patch.GetName(), string(patch.GetPatch()))
		var body map[string]any
		return true, &unstructured.Unstructured{Object: body}, json.Unmarshal(patch.GetPatch(), &body)
	})
	says := func(name, reason string) func() bool {
		return func() bool {
			text, _ := statuses.Load(name)
			return text != nil && strings.Contains(text.(string), `"reason":"`+reason+`"`)
		}
	}
	a.createStanding()
	a.create(gatewayGVR, `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"Gateway","metadata":{"namespace":"shop","name":"waypoint","generation":1},
		"spec":{"gatewayClassName":"istio-waypoint","addresses":[{"type":"IPAddress","value":"10.96.0.9"}],"listeners":[{"name":"mesh","port":15008,"protocol":"HBONE"}]}}`)
	policy := func(name, uri string) string {
		return `{"apiVersion":"security.istio.io/v1","kind":"RequestAuthentication","metadata":{"namespace":"shop","name":"` + name + `","generation":1},
		"spec":{"targetRefs":[{"group":"","kind":"Service","name":"web"}],"jwtRules":[{"issuer":"` + name + `","jwksUri":"` + uri + `"}]}}`
	}
	a.create(authenticationGVR, policy("login", issuer.URL+"/keys"))
	r := a.start(func(c *Config) { c.refreshKeys = 10 * time.Millisecond })
	r.awaitReady()
	told := func() string {
		_, body := r.get(r.debug, "/debug/configz?waypoint=shop/waypoint&type=Listener")
		return body
	}
	has := func(text string) func() bool { return func() bool { return strings.Contains(told(), text) } }
	if body := told(); !strings.Contains(body, "first") {
		t.Errorf("the first that waypoints are told is\n%s", body)
	}
	await(t, "the policy to say that it is in force", says("login", "Accepted"))
	publish(publicKeys(t, "second"))
	await(t, "the issuer's new key", has("second"))
	keys.Store(nil)
	a.awaitWatch(1, "requestauthentications")
	a.create(authenticationGVR, policy("other", issuer.URL+"/none"))
	await(t, "the other policy to say that it has no keys", says("other", "JwksUnavailable"))
	if body := told(); !strings.Contains(body, "second") || !strings.Contains(body, `"kid\":\"none\"`) && !strings.Contains(body, `"kid":"none"`) {
		t.Errorf("while the issuer is away waypoints are told (%s stands for no keys)\n%s", jwks.None, body)
	}
}
