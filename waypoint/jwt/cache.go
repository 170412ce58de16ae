package jwt

import (
	"crypto/sha256"
	"sync"
	"sync/atomic"

	"github.com/puzpuzpuz/xsync/v4"
)

// DefaultCacheSize is how many bytes of tokens a Cache keeps if it is not told: thousands of them. What is kept of a token is some
// times as large as its text.
const DefaultCacheSize = 2 << 20

// Cache keeps tokens that were verified, up to a size. Whether they are still good is not its concern: they have their time in them.
// It is safe for concurrent use.
type Cache struct {
	half int64

	mu         sync.Mutex // guards turning
	young, old atomic.Pointer[generation]
}

// generation is half of a Cache. When the young one is full it becomes the old one, which goes; what is asked for stays young.
type generation struct {
	entries *xsync.Map[cacheKey, *token]
	size    atomic.Int64
}

// cacheKey is a token for a provider. Hashes are of a kind that nobody can make two tokens for.
type cacheKey struct{ provider, token [sha256.Size]byte }

// NewCache makes a Cache for size bytes of tokens; 0 is DefaultCacheSize.
func NewCache(size int) *Cache {
	if size == 0 {
		size = DefaultCacheSize
	}
	c := &Cache{half: int64(size) / 2}
	c.young.Store(newGeneration())
	c.old.Store(newGeneration())
	return c
}

func newGeneration() *generation {
	return &generation{entries: xsync.NewMap[cacheKey, *token]()}
}

// get returns a token that was verified for a provider, nil if it was not or is forgotten.
func (c *Cache) get(k cacheKey) *token {
	if t, ok := c.young.Load().entries.Load(k); ok {
		return t
	}
	t, ok := c.old.Load().entries.Load(k)
	if !ok {
		return nil
	}
	c.put(k, t)
	return t
}

// put keeps a token for a while.
func (c *Cache) put(k cacheKey, t *token) {
	g := c.young.Load()
	if _, there := g.entries.LoadOrStore(k, t); there {
		return
	}
	if g.size.Add(int64(len(t.text))) <= c.half {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.young.Load() == g { // nobody has turned it yet
		c.old.Store(g)
		c.young.Store(newGeneration())
	}
}
