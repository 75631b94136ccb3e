// Torch's memory on a CPU: what tensors of a megabyte and more free is kept for the next ones. The C library can be told to keep it too
// (memory.py), but small blocks come to lie between large ones there, and it asks for some bytes more than an aligned block has, so that
// no map fits where one of its size lay: a third of the memory of a ResNet-18 step is such holes.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <sys/mman.h>

#include <map>
#include <mutex>
#include <new>
#include <unordered_map>

namespace {

constexpr size_t LARGE = size_t(1) << 20, PAGE = size_t(1) << 12;
constexpr size_t WIDER = 2;  // a place up to so many times as large is taken

// Never destroyed: when a process ends, torch frees tensors after this library's own objects have gone.
auto& mutex = *new std::mutex;
auto& sizes = *new std::unordered_map<void*, size_t>;  // of all places, in bytes
auto& idle = *new std::multimap<size_t, void*>;        // those that no tensor has

void* map(size_t size) {
    void* place = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return place == MAP_FAILED ? nullptr : place;
}

// Idle places are unmapped, the largest of those before `end` first, until so many bytes are.
void give_back(size_t bytes, std::multimap<size_t, void*>::iterator end) {
    while (end != idle.begin()) {
        const auto last = std::prev(end);
        const auto [size, place] = *last;
        munmap(place, size);
        sizes.erase(place);
        idle.erase(last);
        if (size >= bytes) return;
        bytes -= size;
    }
}

void* take(size_t size) {
    std::lock_guard<std::mutex> lock(mutex);
    const auto fit = idle.lower_bound(size);
    if (fit != idle.end() && fit->first <= WIDER * size) {
        void* place = fit->second;
        idle.erase(fit);
        return place;
    }
    give_back(size, fit);  // what is too small makes room, so that the process does not grow by what it does not use
    void* place = map(size);
    if (!place) {
        give_back(SIZE_MAX, idle.end());
        place = map(size);
    }
    TORCH_CHECK(place, "can't allocate memory: ", size, " bytes");
    sizes[place] = size;
    return place;
}

class Keeper final : public c10::Allocator {
    static c10::Allocator* small() { return c10::GetDefaultCPUAllocator(); }

    static void leave(void* place) {
        {
            std::lock_guard<std::mutex> lock(mutex);
            const auto found = sizes.find(place);
            if (found != sizes.end()) {
                try {
                    idle.emplace(found->second, place);
                } catch (const std::bad_alloc&) {  // whoever frees a tensor cannot be told
                    munmap(place, found->second);
                    sizes.erase(found);
                }
                return;
            }
        }
        small()->raw_deallocate(place);
    }

  public:
    c10::DataPtr allocate(size_t bytes) override {
        if (bytes < LARGE) {
            try {
                return small()->allocate(bytes);
            } catch (const c10::Error&) {
                std::lock_guard<std::mutex> lock(mutex);
                if (idle.empty()) throw;
                give_back(SIZE_MAX, idle.end());
            }
            return small()->allocate(bytes);
        }
        void* place = take((bytes + PAGE - 1) / PAGE * PAGE);
        return {place, place, &leave, c10::Device(c10::DeviceType::CPU)};
    }

    c10::DeleterFnPtr raw_deleter() const override { return &leave; }

    void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

}  // namespace

// From now on, for the whole process. 0, or why it cannot be.
extern "C" int keep_places() {
    static auto& keeper = *new Keeper;
    // a process that is forked while another thread holds the lock would wait for it forever
    static const int forks = pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); });
    if (!forks) c10::SetCPUAllocator(&keeper, 1);
    return forks;
}
